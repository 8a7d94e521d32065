"""Convolution by a matrix product is torch's convolution, and is used for small pictures with large weights alone."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.models import convolution
from fewstep.models.convolution import ProductConv2d, product, use_products
from fewstep.models.load import speed_up
from tests.tiny import tiny_unet


def results(function: Any, x: Tensor, *given: Any) -> list[Tensor]:
    """The function's result, and the gradient of x."""
    out = function(x, *given)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), x)]


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 5)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1, 3)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (2, 0)])
def test_it_is_torchs_convolution(kernel, stride, padding):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 7, 9, generator=g, dtype=torch.float64).requires_grad_()
    weight, bias = torch.randn(4, 3, *kernel, generator=g).double(), torch.randn(4, generator=g).double()
    for given in (bias, None):
        own = results(product, x, weight, given, stride, padding)
        for one, other in zip(own, results(F.conv2d, x, weight, given, stride, padding), strict=True):
            torch.testing.assert_close(one, other)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of inputs that matrix products were used for; every weight is large."""
    made: list[torch.Size] = []
    monkeypatch.setattr(convolution, "WEIGHTS", 1)
    monkeypatch.setattr(convolution, "product", lambda x, *given: (made.append(x.shape), F.conv2d(x, *given))[1])
    return made


def layer_of(**options: Any) -> nn.Module:
    """A network of one convolution in bf16."""
    network = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, **options)).to(torch.bfloat16)
    use_products(network)
    return network.to(memory_format=torch.channels_last).requires_grad_(False)


def test_it_is_used_for_small_pictures_in_bf16(calls):
    layer = layer_of()
    small, large = (torch.randn(1, 4, side, side, dtype=torch.bfloat16) for side in (16, 17))
    for x in (small, large, small.repeat(2, 1, 1, 1)):
        layer(x)
    layer.float()(small.float())
    assert calls == [small.shape]
    layer_of(stride=2)(torch.randn(1, 4, 32, 32, dtype=torch.bfloat16))
    assert len(calls) == 2


def test_a_weight_that_lies_otherwise_in_memory_is_left_to_torch(calls):
    layer_of().to(memory_format=torch.contiguous_format)(torch.randn(1, 4, 8, 8, dtype=torch.bfloat16))
    assert not calls


@pytest.mark.parametrize("options", [{"groups": 2}, {"dilation": 2}, {"padding_mode": "reflect"}])
def test_other_convolutions_stay_torchs(options, calls):
    assert type(layer_of(**options)[0]) is nn.Conv2d


def test_small_weights_stay_torchs():
    assert type(layer_of()[0]) is nn.Conv2d


@pytest.mark.parametrize("bf16", [False, True])
def test_networks_use_it_on_a_cpu_with_bf16(bf16, calls, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": bf16}, raising=False)
    unet = tiny_unet()
    names = set(unet.state_dict())
    speed_up(unet)
    assert any(isinstance(module, ProductConv2d) for module in unet.modules()) == bf16
    assert set(unet.state_dict()) == names
