"""Distil `lcm` on what the teacher learnt from: the drawings, also in other colours, as packed latents.

    python -m recipes.emoji.lcm --model MODEL --data DATA --out DIR [--steps 2000 ...]

Takes the options of `fewstep distill`, and does the same. DATA: the image folder, or the packed file (latents.py) on a
machine that holds nothing else. Captions are the main ones, with the colour where it is not the drawing's own, or the
label alone. With --guidance-scale-max, captions that name a style are guided by --guidance-scale and those that name
none, of which the teacher is less sure, by the other.
"""

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
from fewstep.io import cache_dir
from fewstep.models.load import load_model, pick_device
from fewstep.training.adapt import Batch, LatentData
from fewstep.training.draws import SampleId
from fewstep.training.methods import method_of
from fewstep.training.progress import check_folder
from fewstep.training.run import train
from recipes.emoji.captions import main_caption, spoken
from recipes.emoji.latents import packed_latents

AT_ONCE = 256  # captions
STYLELESS = 3  # one caption in so many names no style: such prompts have most to decide


class InMemory:
    """Latents (N, C, H, W) and embeddings (N, L, D) in half precision, read as data.cache.Encoded is."""

    def __init__(self, latents: Tensor, text: Tensor) -> None:
        self._latents, self._text = latents, text

    def __len__(self) -> int:
        return len(self._latents)

    def latents(self, indices: Sequence[int]) -> Tensor:
        return self._latents[indices].float()

    def conditioning(self, indices: Sequence[int]) -> Conditioning:
        return Conditioning(self._text[indices].float())


class GuidedByCaption(LatentData):
    """Samples whose guidance is not drawn: the least where the caption names a style, else the greatest."""

    def batch(self, visits: Sequence[SampleId], device: torch.device) -> Batch:
        drawn = super().batch(visits, device)
        return drawn._replace(guidance=torch.tensor([float(names_no_style(visit.index)) for visit in visits]))


def names_no_style(place: int) -> bool:
    """Of the caption so numbered."""
    return place % STYLELESS == 0


def captions_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Of the drawings of these rows, and after them of those in other colours, by number; a third names no style."""
    drawn = [(row["style"], row["label"]) for row in rows]
    others = {
        number: (row["style"], f"{colour} {row['label']}")
        for row in rows
        for colour, number in row["recoloured"].items()
    }
    drawn += [others[number] for number in range(len(others))]
    return [
        spoken(label) if names_no_style(place) else main_caption(style, label)
        for place, (style, label) in enumerate(drawn)
    ]


def run(config: DistillConfig) -> None:
    """Distil config.model, a folder."""
    kind = method_of(config)
    check_folder(config)
    model = load_model(config.model, device=pick_device(config.device))
    method = kind(model, config)
    vae, file = Path(config.model) / "vae", None if config.data.is_dir() else config.data
    packed = packed_latents(config.data, vae, file, cache_dir() / "emoji", model.device)
    captions = captions_of(packed.rows)
    parts = [captions[start : start + AT_ONCE] for start in range(0, len(captions), AT_ONCE)]
    text = torch.cat([model.embed(part).text.half().cpu() for part in parts])
    latents = torch.cat([packed.latents, packed.recoloured])
    encoded = cast(Encoded, InMemory(latents, text))  # read alike
    data = GuidedByCaption(encoded, model.embed([""]).to("cpu"), config.drop_captions)
    train(method, data, own=True)


if __name__ == "__main__":
    sys.exit(main_of(DistillConfig, run))
