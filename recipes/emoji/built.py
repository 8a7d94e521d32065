"""Reads the built image folder: its metadata and its pixels."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def read_metadata(folder: Path, splits: Collection[str] = ("base", "held-out", "style")) -> list[dict[str, Any]]:
    """The lines of metadata.jsonl that belong to these splits."""
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").split("\n")
    return [row for row in map(json.loads, filter(None, lines)) if row["split"] in splits]


def read_pixels(path: Path) -> Tensor:
    """The drawing as (3, H, W) uint8."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def to_signed(pixels: Tensor) -> Tensor:
    """uint8 pixels as floats in [-1, 1]."""
    return pixels.float() / 127.5 - 1
