"""Images in and out: files to pixels in [-1, 1], pixels to PNGs that carry their recipe."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.io import atomic_path


def read_image(path: Path, width: int, height: int) -> Tensor:
    """The image as pixels (3, height, width) float32 in [-1, 1]: on white, scaled to cover, cut at the centre."""
    try:
        with Image.open(path) as file:
            rgba = file.convert("RGBA")
    except FileNotFoundError:
        raise FewstepError(f"image not found: {path}", "check the path") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FewstepError(
            f"unreadable image: {path} ({error})", "replace the file, or take it out of the folder"
        ) from error
    image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    scale = max(width / image.width, height / image.height)
    size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    cut = np.array(image.crop((left, top, left + width, top + height)))
    return torch.from_numpy(cut).permute(2, 0, 1).float() / 127.5 - 1


def to_image(pixels: Tensor) -> Image.Image:
    """The RGB image of pixels (3, H, W) in [-1, 1]."""
    values = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(values.numpy()))


def save_png(path: Path, pixels: Tensor, recipe: Mapping[str, Any]) -> None:
    """Write pixels (3, H, W) in [-1, 1] as a PNG with the recipe, as JSON, in its text chunk `fewstep`."""
    info = PngInfo()
    info.add_itxt("fewstep", json.dumps(recipe, ensure_ascii=False))
    with atomic_path(path) as temporary:
        to_image(pixels).save(temporary, "PNG", pnginfo=info)
