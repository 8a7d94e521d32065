"""Decoders: ways to make pixels of latents, whole or in tiles, with the model's autoencoder or with a tiny one."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.engines import Engine, Facts
from fewstep.errors import FewstepError, UsageError, option
from fewstep.hub import resolved
from fewstep.models.load import DTYPES
from fewstep.models.parts import load_part
from fewstep.models.quiet import quiet

Decode = Callable[[Tensor], Tensor]  # scaled latents (B, C, h, w) -> pixels (B, 3, H, W), float32 in [-1, 1]

NAMES = ("auto", "full", "tiled", "tiny")  # any other is a folder or of the hub
TINY = {  # family -> the tiny autoencoder of its latents, on the hub
    "sd15": "madebyollin/taesd",
    "sd21": "madebyollin/taesd",
    "sdxl": "madebyollin/taesdxl",
    "ssd-1b": "madebyollin/taesdxl",
}
TILE, OVERLAP = 64, 16  # latents on the side of a tile, and those that neighbours share at least
WHOLE = 192 * 192  # latents of the largest picture that auto decodes at once: 1536 x 1536 pixels


def decoder_of(name: str, engine: Engine) -> Decode:
    """The decoder that --decoder names, for the model of an engine. Raises FewstepError for one that does not fit."""
    facts = engine.facts
    if name in ("auto", "full") and facts.factor == 1:
        return engine.decode
    if facts.factor == 1:
        raise UsageError(
            f"{option('decoder')} {name}: {facts.path} is a model in pixel space, which has no decoder", "leave it out"
        )
    if name == "full":
        return engine.decode
    if name in ("auto", "tiled"):
        return Tiled(engine.decode, facts.factor, WHOLE if name == "auto" else 0)
    return Tiny(load_tiny(tiny_name(name, facts), engine), facts)


@dataclass(frozen=True)
class Tiled:
    """Decodes overlapping tiles of one size and blends them linearly. It takes the memory of a tile.

    A tile sees nothing beyond its edges. So the picture differs a little from one that is decoded whole.
    """

    decode: Decode
    factor: int  # pixels per latent
    whole: int  # latents of the largest picture that is decoded whole

    def __call__(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) of latents (B, C, h, w); on the CPU if they were made of tiles."""
        batch, _, height, width = latents.shape
        if height * width <= self.whole or max(height, width) <= TILE:
            return self.decode(latents)
        rows, columns = min(height, TILE), min(width, TILE)
        weight = ramp(rows * self.factor, self.factor)[:, None] * ramp(columns * self.factor, self.factor)
        pixels = torch.zeros(batch, 3, height * self.factor, width * self.factor)
        weights = torch.zeros(pixels.shape[2:])
        for top in starts(height):
            for left in starts(width):
                tile = self.decode(latents[..., top : top + rows, left : left + columns].contiguous()).cpu()
                y, x = (
                    slice(s * self.factor, s * self.factor + n) for s, n in zip((top, left), weight.shape, strict=True)
                )
                pixels[..., y, x] += weight * tile
                weights[y, x] += weight
        return pixels / weights


def starts(length: int) -> list[int]:
    """Where tiles begin on a side of `length` latents: evenly, with at least OVERLAP between neighbours."""
    if length <= TILE:
        return [0]
    count = math.ceil((length - OVERLAP) / (TILE - OVERLAP))
    return [round(i * (length - TILE) / (count - 1)) for i in range(count)]


def ramp(length: int, factor: int) -> Tensor:
    """The weights of a tile along one side, (length,): up to 1 over the overlap at each end."""
    places = torch.arange(length) + 0.5
    return (torch.minimum(places, length - places) / (OVERLAP * factor)).clamp(max=1)


class Tiny:
    """Decodes with a tiny autoencoder (TAESD), which is many times as fast and draws fine details less exactly."""

    def __init__(self, network: Any, facts: Facts) -> None:
        """network: an AutoencoderTiny. Raises UsageError for one of other latents than the model's."""
        self.network = network
        factor = 2 ** (len(network.config.decoder_block_out_channels) - 1)
        if (network.config.latent_channels, factor) != (facts.channels, facts.factor):
            raise UsageError(
                f"{option('decoder')}: its latents have {network.config.latent_channels} channels and {factor} x"
                f" {factor} pixels each, the model's {facts.channels} channels and {facts.factor} x {facts.factor}",
                f"give one that was made for the model's latents, or {option('decoder')} full",
            )

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) of latents (B, C, h, w). Computed again in float32 if half precision overflows."""
        for dtype in dict.fromkeys((self.network.dtype, torch.float32)):
            with quiet():
                self.network.to(dtype)
            pixels: Tensor = self.network.decode(latents.to(dtype) / self.network.config.scaling_factor).sample.float()
            if pixels.isfinite().all():
                return pixels.clamp(-1, 1).contiguous()
        raise FewstepError("the tiny decoder gives values that are not finite", f"use {option('decoder')} full")


def tiny_name(name: str, facts: Facts) -> str:
    """The folder or hub id of the tiny autoencoder: the family's own for tiny, else `name` itself."""
    if name != "tiny":
        return name
    if facts.family not in TINY:
        raise UsageError(
            f"{option('decoder')} tiny: there is none for the latents of {facts.path}",
            f"give {option('decoder')} the folder or hub id of an AutoencoderTiny for them, or full",
        )
    return TINY[facts.family]


def load_tiny(name: str, engine: Engine) -> Any:
    """The AutoencoderTiny in a folder or of the hub, on the engine's device in its precision."""
    from diffusers import AutoencoderTiny  # a slow import that few commands need

    folder = resolved(name)
    if not (folder / "config.json").is_file():
        raise FewstepError(
            f"decoder {name} not found",
            f"{option('decoder')} takes auto, full, tiled, tiny, or the folder or hub id of an AutoencoderTiny",
        )
    with quiet():
        return load_part(AutoencoderTiny, folder, DTYPES.get(engine.dtype, torch.float32), engine.device)
