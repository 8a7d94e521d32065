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
    rgba = opened(path)
    image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    cut = np.array(covering(image, width, height))
    return torch.from_numpy(cut).permute(2, 0, 1).float() / 127.5 - 1


def read_mask(path: Path, width: int, height: int) -> Tensor:
    """A mask (1, height, width) float32 in [0, 1], scaled and cut as `read_image` does: black 0, white 1."""
    cut = np.array(covering(opened(path).convert("L"), width, height))
    return torch.from_numpy(cut)[None].float() / 255


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of the image in pixels."""
    return opened(path).size


def opened(path: Path) -> Image.Image:
    """The image with its transparency. Raises FewstepError when there is none that can be read."""
    try:
        with Image.open(path) as file:
            return file.convert("RGBA")
    except FileNotFoundError:
        raise FewstepError(f"image not found: {path}", "check the path") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FewstepError(
            f"unreadable image: {path} ({error})", "replace the file, or take it out of the folder"
        ) from error


def covering(image: Image.Image, width: int, height: int) -> Image.Image:
    """The image scaled to cover width x height, the rest cut off evenly."""
    size, left, top = placed(image.size, width, height)
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    return image.crop((left, top, left + width, top + height))


def placed(size: tuple[int, int], width: int, height: int) -> tuple[tuple[int, int], int, int]:
    """How `covering` scales a picture of this width and height: to what size, and where the cut begins."""
    scale = max(width / size[0], height / size[1])
    scaled = (max(width, round(size[0] * scale)), max(height, round(size[1] * scale)))
    return scaled, (scaled[0] - width) // 2, (scaled[1] - height) // 2


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
