"""Models in pixel space: a UNet2DModel without text and without an autoencoder, such as DDPM's (arXiv 2006.11239).

diffusers keeps one as a folder with `unet` and `scheduler`, or with the network's files at its top.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel

from fewstep.errors import FewstepError
from fewstep.models.fitting import check_pixels
from fewstep.models.parts import COPY, checked_part, filled

PARTS = ("unet", "scheduler")  # of a model in pixel space


def in_pixels(index: Mapping[str, Any]) -> bool:
    """Whether a model_index.json is that of a model in pixel space."""
    found = index.get("unet")
    return isinstance(found, list) and found[1:] == [UNet2DModel.__name__]


def part_folder(folder: Path, part: str) -> Path:
    """The folder of a part: its own one, or the model's, as in the folders of DDPM's authors."""
    return folder / part if (folder / part).is_dir() else folder


def load_network(folder: Path, index: Mapping[str, Any], dtype: torch.dtype, device: torch.device | str) -> Any:
    """The UNet2DModel of a model folder; on the device meta without weights.

    Raises FewstepError for other parts in the folder, and for a network that takes more than a picture and a timestep.
    """
    own = {part for part, kind in index.items() if isinstance(kind, list) and all(kind)}
    if others := sorted(own - {*PARTS}):
        raise FewstepError(
            f"{folder / 'model_index.json'}: a {UNet2DModel.__name__} together with {', '.join(others)}",
            "fewstep reads a UNet2DModel that draws pixels: a folder with unet and scheduler alone",
        )
    place = part_folder(folder, "unet")
    if not (place / "config.json").is_file():
        raise FewstepError(f"model folder {folder} has no unet folder", COPY)
    network = checked_part(UNet2DModel, place)
    check_pixels(place / "config.json", network.config)
    return network if str(device) == "meta" else filled(network, place, dtype, device)


def clip_of(scheduler: Mapping[str, Any]) -> float | None:
    """The bound to which sampling cuts estimates of x_0, from a scheduler's config; None if it does not cut them.

    A DDPM or DDIM scheduler cuts unless clip_sample is false (diffusers' default).
    """
    return float(scheduler.get("clip_sample_range", 1.0)) if scheduler.get("clip_sample", True) else None
