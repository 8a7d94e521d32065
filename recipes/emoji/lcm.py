"""Distil `lcm` on what the teacher learnt from: the drawings, also in other colours, as packed latents.

    python -m recipes.emoji.lcm --model MODEL --data DATA --out DIR [--steps 2000 ...]

Takes the options of `fewstep distill`, and does the same. DATA: the image folder, or the packed file (latents.py) on a
machine that holds nothing else. Two captions in three name no style: one is the bare name of the thing, the other is
what a person may type. The third is the main caption. All name the colour where it is not the drawing's own.
"""

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fewstep.cli import main_of
from fewstep.configs import DistillConfig
from fewstep.data.cache import Encoded
from fewstep.diffusion.guidance import Conditioning
from fewstep.errors import UsageError, option
from fewstep.io import cache_dir
from fewstep.models.load import load_model, pick_device
from fewstep.training.adapt import LatentData
from fewstep.training.methods import method_of
from fewstep.training.progress import check_folder
from fewstep.training.run import train
from recipes.emoji.captions import main_caption, plain_caption, spoken
from recipes.emoji.latents import packed_latents

AT_ONCE = 256  # captions


class InMemory:
    """Latents (N, C, H, W) and embeddings (N, L, D) in half precision, read as data.cache.Encoded is."""

    views, identity = 1, ""

    def __init__(self, latents: Tensor, text: Tensor) -> None:
        self._latents, self._text = latents, text

    def __len__(self) -> int:
        return len(self._latents)

    @property
    def groups(self) -> list[Tensor]:
        return [torch.arange(len(self))]

    def captions(self, index: int) -> int:
        return 1

    def deviations(self, indices: Sequence[int], views: None = None) -> None:
        return None

    def latents(self, indices: Sequence[int], views: None = None) -> Tensor:
        return self._latents[indices].float()

    def conditioning(self, indices: Sequence[int], views: None = None, captions: object = None) -> Conditioning:
        return Conditioning(self._text[indices].float())


def captions_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A caption for each drawing of these rows, and after them for each drawing in another colour, by number."""
    drawings: list[tuple[dict[str, Any], str | None]] = [(row, None) for row in rows]
    others = {number: (row, colour) for row in rows for colour, number in row["recoloured"].items()}
    drawings += [others[number] for number in range(len(others))]
    return [caption_at(place, row, colour) for place, (row, colour) in enumerate(drawings)]


def caption_at(place: int, row: dict[str, Any], colour: str | None) -> str:
    """The caption of the drawing so numbered: with its style, bare, or in a person's words, in turn."""
    if place % 3 == 2:
        return plain_caption(row, colour, random.Random(place))
    label = f"{colour} {row['label']}" if colour else row["label"]
    return main_caption(row["style"], label) if place % 3 else spoken(label)


def run(config: DistillConfig) -> None:
    """Distil config.model, a folder."""
    if config.data is None:
        raise UsageError(f"{option('data')} is missing", "name the image folder, or the packed file")
    kind = method_of(config)
    check_folder(config)
    model = load_model(config.model, device=pick_device(config.device))
    method = kind(model, config)
    source, vae = Path(config.data), Path(config.model) / "vae"
    file = None if source.is_dir() else source
    packed = packed_latents(source, vae, file, cache_dir() / "emoji", model.device)
    captions = captions_of(packed.rows)
    parts = [captions[start : start + AT_ONCE] for start in range(0, len(captions), AT_ONCE)]
    text = torch.cat([model.embed(part).text.half().cpu() for part in parts])
    latents = torch.cat([packed.latents, packed.recoloured])
    encoded = cast(Encoded, InMemory(latents, text))  # both are read in the same way
    data = LatentData(encoded, model.embed([""]).to("cpu"), config.drop_captions)
    train(method, data, own=True)


if __name__ == "__main__":
    sys.exit(main_of(DistillConfig, run))
