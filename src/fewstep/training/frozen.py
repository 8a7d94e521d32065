"""Frozen weights in fewer bits. A layer unpacks its weight for each call, and again in the backward pass.

Only the packed weight stays in memory. The layers keep the names, shapes and hooks of those they replace.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from fewstep.configs import AdapterConfig
from fewstep.lora.layers import layers_of
from fewstep.models.load import DTYPES
from fewstep.training.packages import bitsandbytes_for

NF4_BLOCK = 64  # values of a weight that share a scale (QLoRA, arXiv 2305.14314)
SMALLEST = 4096  # values; a smaller weight is kept as it is


def storage_of(config: AdapterConfig) -> str:
    """How the frozen weights of a LoRA run are kept: fp32, bf16, fp16, int8 or nf4."""
    return config.precision if config.frozen_weights == "auto" else config.frozen_weights


def loading_dtype(config: AdapterConfig) -> torch.dtype:
    """The type in which the network of a run is read: the narrowest from which training can begin.

    A network that is trained whole is read in float32; one that draws the pictures of a run, in the run's precision.
    """
    if config.full:
        return torch.float32
    storage = storage_of(config)
    if getattr(config, "synthetic", False):
        return DTYPES[config.precision]
    return DTYPES.get(storage, torch.bfloat16)


def packed(weight: Tensor, storage: str) -> tuple[Tensor, Tensor | None]:
    """The weight in this storage (fp32, bf16, fp16, int8 or nf4), and its scales.

    int8: whole numbers up to 127 and a scale for each output. nf4: two values of 4 bits a byte, from the package
    bitsandbytes (QLoRA, arXiv 2305.14314), and a scale for each NF4_BLOCK of them.
    """
    if storage == "int8":
        largest = weight.float().flatten(1).abs().amax(1).view(-1, *(1,) * (weight.dim() - 1))
        scales = largest.clamp(min=1e-12) / 127
        return (weight / scales).round().to(torch.int8), scales
    if storage == "nf4":
        values, scales = torch.ops.bitsandbytes.quantize_4bit(weight.contiguous(), NF4_BLOCK, "nf4", torch.uint8)
        return values, scales
    return weight.to(DTYPES[storage]), None


def unpacked(values: Tensor, scales: Tensor | None, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The weight of this shape, in a floating type, of what `packed` made."""
    if scales is None:
        return values.to(dtype)
    if values.dtype == torch.int8:
        return values.to(dtype) * scales.to(dtype)
    # as one row: for matrices with rows of no whole blocks, bitsandbytes 0.50 gives other weights on CPUs with AVX-512
    row: Tensor = torch.ops.bitsandbytes.dequantize_4bit(values, scales, NF4_BLOCK, "nf4", (shape.numel(),), dtype)
    return row.view(shape)


class PackedLayer(nn.Module):
    """What a packed Linear and Conv2d share: the packed weight, and no parameter but the bias."""

    values: Tensor
    scales: Tensor | None
    shape: torch.Size

    def hold(self, layer: nn.Linear | nn.Conv2d, storage: str, dtype: torch.dtype) -> None:
        """Take the layer's weight, packed, and its bias, in the type for computing."""
        del self.weight
        values, scales = packed(layer.weight.detach(), storage)
        self.register_buffer("values", values, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.shape = layer.weight.shape
        bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().to(dtype), requires_grad=False)
        self.register_parameter("bias", bias)

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """The layer's weight, in a floating type."""
        return unpacked(self.values, self.scales, self.shape, dtype)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = UnpackedCall.apply(x, self)  # type: ignore[no-untyped-call]
        return output

    def call(self, x: Tensor) -> Tensor:
        """The layer's output, without gradients."""
        raise NotImplementedError

    def backward(self, x_shape: torch.Size, gradient: Tensor) -> Tensor:
        """The gradient of the layer's input."""
        raise NotImplementedError


class PackedLinear(PackedLayer, nn.Linear):
    """A frozen Linear whose weight is packed."""

    def __init__(self, layer: nn.Linear, storage: str, dtype: torch.dtype) -> None:
        nn.Linear.__init__(self, layer.in_features, layer.out_features, bias=False, device="meta")
        self.hold(layer, storage, dtype)

    def call(self, x: Tensor) -> Tensor:
        return F.linear(x, self.unpack(x.dtype), self.bias)

    def backward(self, x_shape: torch.Size, gradient: Tensor) -> Tensor:
        return gradient @ self.unpack(gradient.dtype)


class PackedConv2d(PackedLayer, nn.Conv2d):
    """A frozen Conv2d, without groups, whose weight is packed."""

    def __init__(self, layer: nn.Conv2d, storage: str, dtype: torch.dtype) -> None:
        given = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        options: Any = {**given, "bias": False, "device": "meta"}
        nn.Conv2d.__init__(self, layer.in_channels, layer.out_channels, layer.kernel_size, **options)  # type: ignore[arg-type]
        self.hold(layer, storage, dtype)

    def call(self, x: Tensor) -> Tensor:
        output: Tensor = self._conv_forward(x, self.unpack(x.dtype), self.bias)
        return output

    def backward(self, x_shape: torch.Size, gradient: Tensor) -> Tensor:
        weight, places = self.unpack(gradient.dtype), (self.stride, self.padding, self.dilation)
        found: Tensor = conv2d_input(x_shape, weight, gradient, *places)  # type: ignore[no-untyped-call]
        return found


class UnpackedCall(torch.autograd.Function):
    """Calls a packed layer. The unpacked weight is not kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLayer) -> Tensor:
        ctx.layer, ctx.x_shape = layer, x.shape
        return layer.call(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.backward(ctx.x_shape, gradient), None


def pack(network: nn.Module, storage: str, dtype: torch.dtype) -> None:
    """Pack the weights of the network's layers in place, and convert its other parameters to `dtype`, for computing.

    Weights of fewer than SMALLEST values are converted too. Raises UsageError if nf4's package is not installed.
    """
    if storage == "nf4":
        bitsandbytes_for("frozen_weights", "nf4", "int8")
    for name, layer in layers_of(network).items():
        kind: Any = PackedLinear if isinstance(layer, nn.Linear) else PackedConv2d
        weight = layer.weight
        if isinstance(weight, Tensor) and weight.numel() >= SMALLEST:
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, kind(layer, storage, dtype).train(layer.training))
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)
