"""Attention by matrix products is torch's attention, and is used where it is meant to be."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor
from torch.nn import functional as F

from fewstep.models import attention
from fewstep.models.attention import AttentionProcessor, BlockedAttention, use_attention
from fewstep.models.load import load_model, speed_up
from fewstep.models.nag import guided_attention_of
from tests.tiny import tiny_unet

SIZES = [(1, 1, 1, 1, 1), (2, 3, 7, 5, 3), (1, 2, 13, 1, 4), (1, 1, 3, 17, 2)]  # B, heads, N, M, D


def inputs(B: int, heads: int, N: int, M: int, D: int, dtype: torch.dtype, size: float = 1.0) -> list[Tensor]:
    """Q, K, V and the gradient of the result, ordered in memory as diffusers orders them."""
    g = torch.Generator().manual_seed(0)
    made = (torch.randn(B, n, heads, D, generator=g, dtype=torch.float64) * size for n in (N, M, M, N))
    return [x.to(dtype).transpose(1, 2).requires_grad_() for x in made]


def results(function: Any, given: list[Tensor]) -> list[Tensor]:
    """The function's result, and the gradients of Q, K and V."""
    *qkv, gradient = given
    out = function(*qkv)
    return [out.detach(), *torch.autograd.grad(out, qkv, gradient.detach())]


@pytest.mark.parametrize("scores", [1, 10, 2**21])
@pytest.mark.parametrize("size", SIZES)
def test_it_is_torchs_in_blocks_of_any_size(size, scores, monkeypatch):
    monkeypatch.setattr(attention, "SCORES", scores)
    given = inputs(*size, torch.float64)
    pairs = zip(results(BlockedAttention.apply, given), results(F.scaled_dot_product_attention, given), strict=True)
    for own, torchs in pairs:
        torch.testing.assert_close(own, torchs, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(BlockedAttention.apply, given[:3])


@pytest.mark.parametrize("size", [(1, 2, 700, 700, 40), (2, 1, 300, 77, 80), (1, 1, 256, 256, 512)])
def test_in_bf16_it_is_as_near_to_fp32_as_torchs_times_3(size):
    given = inputs(*size, torch.bfloat16)
    exact = results(F.scaled_dot_product_attention, [x.detach().float().requires_grad_() for x in given])
    for own, torchs, value in zip(
        results(BlockedAttention.apply, given), results(F.scaled_dot_product_attention, given), exact, strict=True
    ):
        assert (own - value).norm() <= 3 * (torchs - value).norm()
        assert own.dtype == torch.bfloat16


def test_great_scores_stay_finite():
    for x in results(BlockedAttention.apply, inputs(1, 2, 70, 50, 8, torch.bfloat16, size=1e4)):
        assert x.isfinite().all()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of Q that matrix products were used for."""
    made: list[torch.Size] = []

    def apply(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        made.append(query.shape)
        return F.scaled_dot_product_attention(query, key, value)

    monkeypatch.setattr(BlockedAttention, "apply", apply)
    return made


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with instructions for bf16."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)


def step(unet: Any, side: int) -> Tensor:
    """The UNet's output for random latents of this side."""
    g = torch.Generator().manual_seed(0)
    x, text = torch.randn(1, 4, side, side, generator=g), torch.randn(1, 16, 16, generator=g)
    with torch.no_grad():
        return unet(x.to(unet.dtype), torch.tensor([500]), text.to(unet.dtype), return_dict=False)[0]


@pytest.mark.usefixtures("fast")
def test_a_loaded_network_uses_it_in_bf16_at_a_large_size_alone(tiny_model_folder: Path, calls):
    unet = load_model(str(tiny_model_folder), torch.bfloat16).unet
    step(unet, 16)
    assert not calls
    step(unet, 48)
    assert calls == [torch.Size((1, 2, 48 * 48, 8))] * 3  # never to the text of 16 tokens
    calls.clear()
    with guided_attention_of(unet, 5.0):
        step(unet, 48)
    assert len(calls) == 3
    step(unet.float(), 48)
    assert len(calls) == 3


def test_an_autoencoder_uses_it_in_its_only_head(calls):
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).to(torch.bfloat16).eval()
    use_attention(vae)
    with torch.no_grad():
        vae.decode(torch.zeros(1, 4, 48, 48, dtype=torch.bfloat16))
    assert calls == [torch.Size((1, 1, 48 * 48, 8))]


def test_a_processor_without_bf16_keeps_diffusers_own(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    unet = tiny_unet()
    speed_up(unet)
    assert {type(processor) for processor in unet.attn_processors.values()} == {AttnProcessor2_0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_it_is_torchs_the_network_is_diffusers_own_to_the_bit(dtype):
    unet = tiny_unet().to(dtype).eval()
    own = step(unet, 16)
    use_attention(unet)
    assert {type(processor) for processor in unet.attn_processors.values()} == {AttentionProcessor}
    assert torch.equal(step(unet, 16), own)


def test_autoencoders_and_networks_of_pixels_are_diffusers_own_to_the_bit():
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).eval()
    pixel = UNet2DModel(8, block_out_channels=(8, 16), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                        up_block_types=("AttnUpBlock2D", "UpBlock2D"), norm_num_groups=4).eval()  # fmt: skip
    x = torch.randn(1, 3, 8, 8)
    for network, arguments in ((vae, (x,)), (pixel, (x, 5))):
        with torch.no_grad():
            own = network(*arguments).sample
            use_attention(network)
            assert torch.equal(network(*arguments).sample, own)


def test_masked_attention_is_diffusers_own():
    unet = tiny_unet().eval()
    text, mask = torch.randn(1, 16, 16), torch.tensor([[1] * 5 + [0] * 11])
    x = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        own = unet(x, 5, text, encoder_attention_mask=mask).sample
        use_attention(unet)
        assert torch.equal(unet(x, 5, text, encoder_attention_mask=mask).sample, own)
        assert not torch.equal(unet(x, 5, text).sample, own)


def trained(unet: UNet2DConditionModel, side: int) -> list[Tensor]:
    """The gradients of the UNet's parameters."""
    g = torch.Generator().manual_seed(0)
    x, text = torch.randn(1, 4, side, side, generator=g), torch.randn(1, 16, 16, generator=g)
    unet.zero_grad()
    unet(x.to(unet.dtype), 5, text.to(unet.dtype)).sample.float().square().mean().backward()
    return [parameter.grad.float() for parameter in unet.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_a_network_in_bf16_are_those_of_torchs_attention(checkpointing, monkeypatch):
    monkeypatch.setattr(attention, "EDGE", 0)
    torch.manual_seed(0)
    unet = tiny_unet().train()
    exact = torch.cat([x.flatten() for x in trained(unet, 16)])
    unet.to(torch.bfloat16)
    torchs = torch.cat([x.flatten() for x in trained(unet, 16)])
    use_attention(unet)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    own = torch.cat([x.flatten() for x in trained(unet, 16)])
    assert not torch.equal(own, torchs)
    assert (own - exact).norm() <= 1.5 * (torchs - exact).norm()


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
def test_traced_and_compiled_networks_have_torchs_attention(monkeypatch, calls):
    monkeypatch.setattr(attention, "EDGE", 0)
    q, k, v, _ = (x.detach() for x in inputs(1, 2, 9, 9, 4, torch.bfloat16))
    traced = torch.jit.trace(attention.attention, (q, k, v), check_trace=False)
    assert "scaled_dot_product_attention" in str(traced.graph)
    exported = torch.export.export(Exported(), (q, k, v))
    assert "scaled_dot_product_attention" in str(exported.graph)
    assert not calls
    attention.attention(q, k, v)
    assert calls


class Exported(torch.nn.Module):
    """`attention` as a module."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention.attention(q, k, v)
