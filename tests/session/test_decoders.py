"""Decoders: tiles that blend to the whole, a tiny autoencoder, and what does not fit."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn import functional as F

from fewstep.errors import FewstepError, UsageError
from fewstep.session import decoders
from fewstep.session.decoders import OVERLAP, TILE, Tiled, Tiny, decoder_of, ramp, starts
from fewstep.session.recipe import read_recipe
from tests.sessions import session

# --- tiles --------------------------------------------------------------------------------------------------


def enlarged(latents: Tensor) -> Tensor:
    """A decoder that looks at no neighbours: each latent becomes 2 x 2 pixels."""
    assert max(latents.shape[2:]) <= TILE
    return F.interpolate(latents[:, :3], scale_factor=2)


@pytest.mark.parametrize("size", [(65, 64), (64, 200), (113, 112), (150, 90), (40, 97)])
def test_tiles_of_a_local_decoder_are_the_whole(size: tuple[int, int]) -> None:
    latents = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(latents[:, :3], scale_factor=2)
    torch.testing.assert_close(Tiled(enlarged, 2, 0)(latents), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 112, 113, 200, 1024])
def test_tiles_cover_a_side_and_overlap(length: int) -> None:
    found = starts(length)
    assert found[0] == 0
    assert found[-1] + TILE >= length
    assert all(0 < b - a <= TILE - OVERLAP for a, b in pairwise(found))
    assert len(found) == 1 or found[-1] + TILE == length


def test_a_tile_counts_less_towards_its_edges() -> None:
    weights = ramp(2 * TILE, 2)
    assert (weights > 0).all()
    assert torch.equal(weights, weights.flip(0))
    assert weights[: 2 * OVERLAP].diff().min() > 0
    assert weights[2 * OVERLAP] == 1


def test_small_pictures_are_decoded_whole() -> None:
    calls: list[Tensor] = []

    def decode(latents: Tensor) -> Tensor:
        calls.append(latents)
        return latents

    for size, whole in (((64, 64), 0), ((10, 300), 3000)):
        latents = torch.zeros(1, 3, *size)
        assert Tiled(decode, 1, whole)(latents) is latents
    assert len(calls) == 2


def test_a_picture_in_tiles_is_near_the_whole(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "TILE", 8)
    monkeypatch.setattr(decoders, "OVERLAP", 4)
    options: dict[str, Any] = {"steps": 1, "width": 40, "height": 24}
    found = {}
    for name in ("full", "auto", "tiled"):
        with session(tiny_model_folder, decoder=name) as opened:
            found[name] = next(opened.draw("a cat", **options)).pixels
    assert torch.equal(found["auto"], found["full"])
    assert found["tiled"].shape == (3, 24, 40)
    difference = (found["tiled"] - found["full"]).abs().mean()
    assert 0 < difference < 0.5 * found["full"].std()


# --- a tiny autoencoder -------------------------------------------------------------------------------------


def tiny_autoencoder(folder: Path, **changes: Any) -> Path:
    """A random AutoencoderTiny for the tiny model's latents, of two pixels each."""
    torch.manual_seed(0)
    config = {
        "encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8), "num_encoder_blocks": (1, 1),
        "num_decoder_blocks": (1, 1), "latent_channels": 4,
    }  # fmt: skip
    AutoencoderTiny(**(config | changes)).save_pretrained(folder)
    return folder


def test_pixels_are_those_of_the_network(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = tiny_autoencoder(tmp_path / "taesd")
    latents = torch.randn(2, 4, 8, 8)
    with session(tiny_model_folder, decoder=str(folder)) as opened:
        found = decoder_of(str(folder), opened.engine)(latents)
        picture = next(opened.draw("a cat", steps=1))
    with torch.no_grad():
        expected = AutoencoderTiny.from_pretrained(folder).decode(latents).sample
    torch.testing.assert_close(found, expected.clamp(-1, 1), rtol=0, atol=1e-6)
    assert picture.pixels.shape == (3, 16, 16)
    assert picture.recipe["decoder"] == str(folder)
    with session(tiny_model_folder) as opened:
        assert not torch.equal(picture.pixels, next(opened.draw("a cat", steps=1)).pixels)


def test_a_family_has_its_own(tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_autoencoder(tmp_path / "taesd")
    with session(tiny_model_folder) as opened:
        engine = opened.engine
        with pytest.raises(
            UsageError, match=r"^decoder tiny: there is none for the latents of .*\n\nhint: give decoder"
        ):
            decoder_of("tiny", engine)
        monkeypatch.setattr(decoders, "TINY", {engine.facts.family: str(folder)})
        assert isinstance(decoder_of("tiny", engine), Tiny)


@pytest.mark.parametrize(
    "changes",
    [{"latent_channels": 16}, {"decoder_block_out_channels": (8, 8, 8), "num_decoder_blocks": (1, 1, 1),
                               "encoder_block_out_channels": (8, 8, 8), "num_encoder_blocks": (1, 1, 1)}],
)  # fmt: skip
def test_other_latents_are_refused(tiny_model_folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = tiny_autoencoder(tmp_path / "taesd", **changes)
    with pytest.raises(UsageError, match=r"its latents have (16 channels and 2 x 2|4 channels and 4 x 4) pixels each"):
        session(tiny_model_folder, decoder=str(folder))


class Overflowing:
    """A network whose half precision overflows; always: its float32 does so too."""

    config = SimpleNamespace(decoder_block_out_channels=(8, 8), latent_channels=4, scaling_factor=1.0)

    def __init__(self, always: bool) -> None:
        self.dtype, self.always = torch.float16, always

    def to(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def decode(self, latents: Tensor) -> SimpleNamespace:
        bad = self.always or latents.dtype == torch.float16
        return SimpleNamespace(sample=torch.full_like(latents[:, :3], float("nan") if bad else 2.0))


def test_what_overflows_is_computed_again(tiny_model_folder: Path) -> None:
    with session(tiny_model_folder) as opened:
        facts = opened.engine.facts
    latents = torch.zeros(1, 4, 8, 8)
    assert torch.equal(Tiny(Overflowing(False), facts)(latents), torch.ones(1, 3, 8, 8))
    with pytest.raises(FewstepError, match="not finite\n\nhint: use decoder full"):
        Tiny(Overflowing(True), facts)(latents)
    with pytest.raises(UsageError, match="channels"):
        Tiny(Overflowing(False), replace(facts, channels=8))


# --- from outside -------------------------------------------------------------------------------------------


def test_a_picture_is_drawn_again_with_its_decoder(fewstep: Any, tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = tiny_autoencoder(tmp_path / "taesd")
    options = {"steps": 1, "batch_size": 1, "device": "cpu", "dtype": "fp32", "model": tiny_model_folder}
    done = fewstep("sample", "a cat", decoder=folder, out=tmp_path / "first", **options)
    assert (done.code, done.err) == (0, "")
    picture = Path(done.out.strip())
    assert read_recipe(picture).get("decoder") == str(folder)
    done = fewstep("sample", "--redraw", picture, "--device", "cpu", "--batch-size", 1, out=tmp_path / "again")
    assert done.code == 0, done.err
    from PIL import Image

    with Image.open(picture) as one, Image.open(done.out.strip()) as other:
        assert one.tobytes() == other.tobytes()


def test_what_is_no_decoder_is_refused(
    fewstep: Any, tiny_model_folder: Path, tiny_pixels_folder: Path, tmp_path: Path
) -> None:
    def refused(decoder: object, model: Path, code: int) -> tuple[str, str]:
        done = fewstep("sample", "a cat", steps=1, decoder=decoder, model=model, out=tmp_path / "out")
        assert (done.code, done.out) == (code, "")
        assert not (tmp_path / "out").exists()
        return done.error, done.hint

    error, hint = refused("huge", tiny_model_folder, 1)
    assert error == "decoder huge not found"
    assert "auto, full, tiled, tiny" in hint
    refused(tiny_model_folder / "vae", tiny_model_folder, 1)  # an AutoencoderKL
    folder = tiny_autoencoder(tmp_path / "taesd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_decoder_blocks": [1000, 1]}))
    assert "asks for at least" in refused(folder, tiny_model_folder, 1)[0]
    (folder / "config.json").write_text(json.dumps(config | {"num_decoder_blocks": "many"}))
    assert "num_decoder_blocks" in refused(folder, tiny_model_folder, 1)[0]
    done = fewstep("sample", "", steps=1, decoder="tiled", model=tiny_pixels_folder, out=tmp_path / "out")
    assert done.code == 2
    assert "is a model in pixel space, which has no decoder" in done.error
