"""Distil `lcm` on a machine that holds the packed latents (latents.py) instead of the drawings.

    python recipes/emoji/lcm.py --model MODEL --data latents-<hash>.safetensors --out DIR [--steps 2000 ...]

Takes the options of `fewstep distill`, and does the same with the base drawings and their main captions.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from captions import main_caption
from latents import read_packed
from torch import Tensor

from fewstep.cli import main_of
from fewstep.configs import DistillConfig
from fewstep.diffusion.guidance import Conditioning
from fewstep.models.load import load_model, pick_device
from fewstep.training.adapt import LatentData
from fewstep.training.distill import check_method, distil
from fewstep.training.progress import check_folder

AT_ONCE = 256  # captions


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


def run(config: DistillConfig) -> None:
    """Distil config.model, a folder, on the packed latents config.data."""
    check_method(config)
    check_folder(config)
    model = load_model(config.model, device=pick_device(config.device))
    packed = read_packed(config.data, Path(config.model) / "vae")
    captions = [main_caption(row["style"], row["label"]) for row in packed.rows]
    parts = [captions[start : start + AT_ONCE] for start in range(0, len(captions), AT_ONCE)]
    text = torch.cat([model.embed(part).text.half().cpu() for part in parts])
    data = LatentData(InMemory(packed.latents, text), model.embed([""]).to("cpu"), config.drop_captions)
    distil(config, model, data)


if __name__ == "__main__":
    sys.exit(main_of(DistillConfig, run))
