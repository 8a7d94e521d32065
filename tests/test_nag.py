"""Negative prompts at guidance 1: the formula's laws, and what it does to a network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.models.load import load_model
from fewstep.models.nag import CROSS, GuidedAttention, guided_attention, guided_attention_of
from fewstep.session import Picture
from tests.conftest import Outcome
from tests.sessions import pictures, session

SCALES = st.floats(1, 20)


def attended(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2, 5, 8, generator=g), torch.randn(2, 5, 8, generator=g)


@given(st.floats(0, 1), st.floats(1, 5))
def test_at_scale_1_it_is_attention_to_the_prompt(alpha: float, tau: float):
    positive, negative = attended()
    assert torch.allclose(guided_attention(positive, negative, 1.0, tau, alpha), positive, atol=1e-6)


@given(SCALES)
def test_the_same_text_twice_changes_nothing(scale: float):
    positive, _ = attended()
    assert torch.allclose(guided_attention(positive, positive, scale, 2.5, 0.5), positive, atol=1e-4)


@given(SCALES, st.floats(1, 5))
def test_its_norm_is_at_most_tau_times_the_prompts(scale: float, tau: float):
    positive, negative = attended()
    whole = guided_attention(positive, negative, scale, tau, 1.0)
    assert (whole.abs().sum(-1) <= tau * positive.abs().sum(-1) * (1 + 1e-5)).all()


def test_below_tau_it_is_the_extrapolation():
    positive, negative = attended()
    assert torch.allclose(guided_attention(positive, negative, 3.0, 1e6, 1.0), 3 * positive - 2 * negative, atol=1e-5)


def test_nothing_attended_to_stays_nothing():
    nothing = torch.zeros(1, 2, 4)
    assert torch.equal(guided_attention(nothing, nothing, 5.0, 2.5, 0.5), nothing)


def test_at_scale_1_the_network_is_diffusers_own(tiny_model_folder: Path):
    unet = load_model(str(tiny_model_folder)).unet
    x, t, text = torch.randn(2, 4, 8, 8), torch.tensor([500, 20]), torch.randn(2, 16, 16)
    with torch.no_grad():
        own = unet(x, t, text, return_dict=False)[0]
        kind = {name: GuidedAttention(1.0) for name in unet.attn_processors if name.endswith(CROSS)}
        unet.set_attn_processor(unet.attn_processors | kind)
        guided = unet(x, t, torch.cat([text, torch.randn(2, 16, 16)]), return_dict=False)[0]
    assert torch.allclose(own, guided, atol=1e-5)


def drawn(model: Path, **options: Any) -> Picture:
    return pictures(model, "a cat", steps=2, **({"guidance_scale": 1} | options))[0]


def test_it_works_at_guidance_1_without_more_calls(tiny_model_folder: Path):
    without = drawn(tiny_model_folder, negative_prompt="a red house")
    plain = drawn(tiny_model_folder)
    assert torch.equal(without.pixels, plain.pixels)
    guided = drawn(tiny_model_folder, negative_prompt="a red house", nag_scale=10)
    assert not torch.equal(guided.pixels, plain.pixels)
    assert guided.recipe["nfe"] == plain.recipe["nfe"] == 2
    both = drawn(tiny_model_folder, negative_prompt="a red house", nag_scale=10, guidance_scale=3)
    assert both.recipe["nfe"] == 4


def test_the_same_session_draws_without_it_again(tiny_model_folder: Path):
    guided = {"negative_prompt": "a house", "nag_scale": 5}
    with session(tiny_model_folder) as opened:
        first, _, again = (
            [p.pixels for p in opened.draw(["a cat", "a dog"], steps=1, guidance_scale=3, **options)]
            for options in ({}, guided, {})
        )
    for before, after in zip(first, again, strict=True):
        assert torch.equal(before, after)


def test_the_network_is_left_as_it_was(tiny_model_folder: Path):
    unet = load_model(str(tiny_model_folder)).unet
    before = dict(unet.attn_processors)
    with guided_attention_of(unet, 5.0):
        assert dict(unet.attn_processors) != before
    assert dict(unet.attn_processors) == before


def test_the_hint_names_it(fewstep: Callable[..., Outcome], tiny_model_folder: Path, tmp_path: Path):
    options = {"model": tiny_model_folder, "steps": 1, "guidance_scale": 1, "negative_prompt": "red", "out": tmp_path}
    assert "--nag-scale 5 makes it work" in fewstep("sample", "a cat", **options).err
    assert "no effect" not in fewstep("sample", "a cat", nag_scale=5, **options).err
