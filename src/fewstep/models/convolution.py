"""Small convolutions in bf16 on a CPU, as matrix products: torch puts their weights in another order for each call."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.models.attention import recorded

POSITIONS = 256  # of the outputs, at most; for more, torch's own convolution is as fast or faster
WEIGHTS = 2**20  # values of a weight, at least; a smaller one is soon in another order


def use_products(network: nn.Module) -> None:
    """Have the network's convolutions compute small pictures as matrix products, if their weights are large."""
    for module in network.modules():
        if type(module) is nn.Conv2d and suits(module):
            module.__class__ = ProductConv2d


def suits(layer: nn.Conv2d) -> bool:
    """Whether the layer is one of those that `product` computes, with a large weight."""
    plain = layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
    return plain and not isinstance(layer.padding, str) and layer.weight.numel() >= WEIGHTS


class ProductConv2d(nn.Conv2d):
    """A Conv2d that computes small pictures as a matrix product."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.is_small(input, weight):
            return product(input, weight, bias, self.stride, self.padding)
        output: Tensor = super()._conv_forward(input, weight, bias)
        return output

    def is_small(self, x: Tensor, weight: Tensor) -> bool:
        """Whether a matrix product is faster. Its matrix is the weight in channels_last, without a copy."""
        if x.device.type != "cpu" or not (x.dtype == weight.dtype == torch.bfloat16) or recorded():
            return False
        positions = x.shape[0] * x.shape[2] * x.shape[3] // (self.stride[0] * self.stride[1])
        return positions <= POSITIONS and weight.is_contiguous(memory_format=torch.channels_last)


def product(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any) -> Tensor:
    """The convolution of x (B, C, H, W), (B, O, h, w): each output's inputs in a row, times the weight as a matrix."""
    (down, right), (rows, columns) = stride, weight.shape[2:]
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0]))
    height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    seen = [x[:, i : i + height : down, j : j + width : right] for i in range(rows) for j in range(columns)]
    return F.linear(torch.cat(seen, -1), weight.permute(0, 2, 3, 1).flatten(1), bias).permute(0, 3, 1, 2)
