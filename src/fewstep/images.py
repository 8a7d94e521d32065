"""Images in and out: files to pixels in [-1, 1], pixels to files that carry their recipe."""

import io
import json
import sys
import unicodedata
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from fewstep.errors import FewstepError, option
from fewstep.io import first_bytes, refuse_stand_in, write_new

TURNS = {  # EXIF's orientation: what to do with the picture, so that its top is above and its left on the left
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = 5  # from this orientation on, height and width change places
SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}  # of the kinds of file that pictures are saved as
SAVING: dict[str, dict[str, Any]] = {  # no colour is thinned out; run lengths pack a PNG in a third of the usual time
    "png": {"compress_type": zlib.Z_RLE},
    "jpeg": {"subsampling": 0},
    "webp": {"method": 4},
}
QUALITY = 95  # of a JPEG and a WebP
RECIPE = "fewstep"  # a PNG's text chunk; in the recipe, the version
COMMENT = b"ASCII\0\0\0"  # what EXIF's UserComment begins with: its character code

PictureFile = Path | bytes  # a file, or what is in one
UNNAMED = "the picture that was given"  # the name in errors of bytes that come without one


def read_image(picture: PictureFile, width: int, height: int, name: str = UNNAMED) -> Tensor:
    """The image as pixels (3, height, width) float32 in [-1, 1]: on white, scaled to cover, cut at the centre.

    name: what errors call a picture that is bytes. Raises FewstepError if the picture cannot be read.
    """
    return to_pixels(covering(on_white(opened(picture, name)), width, height))


def on_white(rgba: Image.Image) -> Image.Image:
    """The RGBA image as RGB, on white where it is transparent."""
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def to_pixels(image: Image.Image) -> Tensor:
    """Pixels (3, H, W) float32 in [-1, 1] of an RGB image."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def read_mask(picture: PictureFile, width: int, height: int) -> Tensor:
    """A mask (1, height, width) float32 in [0, 1], scaled and cut as `read_image` does: black 0, white 1."""
    cut = np.array(covering(opened(picture).convert("L"), width, height))
    return torch.from_numpy(cut)[None].float() / 255


def image_size(picture: PictureFile) -> tuple[int, int]:
    """Width and height in pixels of the image as it is seen, which is as `read_image` reads it."""
    return opened(picture).size


def stated_size(data: bytes, name: str) -> tuple[int, int]:
    """Width and height of an image as it is seen, as its file states them; its pixels are not read.

    Raises FewstepError if the file is none of an image.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as file:
            size, turned = file.size, orientation(file) >= SIDEWAYS
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        raise explained(data, name, error) from error
    return size[::-1] if turned else size


def read_bytes(path: Path) -> bytes:
    """What is in the file of a picture. Raises FewstepError when there is none that can be read."""
    opened(path)
    return path.read_bytes()


def file_bytes(path: Path) -> bytes:
    """The file's content, whatever it is. Raises FewstepError if the file is missing or cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FewstepError(f"image not found: {path}", "check the path") from None
    except OSError as error:
        raise unreadable(str(path), error.strerror or error) from error


def opened(picture: PictureFile, name: str = UNNAMED) -> Image.Image:
    """The image as it is to be seen: RGBA of 8 bits, turned as its EXIF orientation says. All pictures come from here.

    name: what errors call a picture that is bytes. Raises FewstepError if the picture cannot be read.
    """
    name = name if isinstance(picture, bytes) else str(picture)
    try:
        source = io.BytesIO(picture) if isinstance(picture, bytes) else picture
        with warnings.catch_warnings(action="ignore"), Image.open(source) as file:
            file.load()
            return upright(eight_bits(file).convert("RGBA"), orientation(file))
    except FileNotFoundError:
        raise FewstepError(f"image not found: {name}", "check the path") from None
    except IsADirectoryError:
        raise FewstepError(f"image {name} is a folder", "name one picture") from None
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        raise explained(picture, name, error) from error


def explained(picture: PictureFile, name: str, error: Exception) -> FewstepError:
    """The error for a picture with which Pillow fails. Raises the one for a file that stands in for another."""
    refuse_stand_in(picture, name)
    reason = getattr(error, "strerror", None) or error
    if isinstance(error, UnidentifiedImageError):  # whose own words are the path again
        reason = "of no kind that is known here"
    return unreadable(name, reason)


def unreadable(name: str, reason: object) -> FewstepError:
    """The error for an image that cannot be read."""
    hint = "replace the file by a PNG or JPEG, or take it out of the folder"
    return FewstepError(f"unreadable image: {name} ({reason})", hint)


def orientation(image: Image.Image) -> int:
    """The image's EXIF orientation, 1...8; 1, which is upright, if it has none or its EXIF is damaged."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        value = None
    return value if value in TURNS else 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The image turned or mirrored as the EXIF orientation says it is to be seen."""
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def eight_bits(image: Image.Image) -> Image.Image:
    """The image with 8 bits a channel: 16-bit grey is scaled, white to white, where Pillow's own `convert` clips.

    Pillow has read 16-bit colour as 8 bits already. Raises ValueError for floats and integers of more bits: no file
    says which of them is white.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError("grey of 32 bits; save it with 8 or 16 bits, black as 0")
    return Image.fromarray(np.rint(values / 257).astype(np.uint8))


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


def save_image(path: Path, image: Image.Image, kind: str, recipe: Mapping[str, Any] | None = None) -> Path:
    """Where the image was saved, in a file that carries the recipe.

    path: without a suffix, or with another one. It gets that of the kind, png, jpeg or webp, and a number if another
    picture has that name.
    """
    return write_new(path.with_name(path.name + SUFFIXES[kind]), encoded(image, kind, recipe))


def encoded(image: Image.Image, kind: str, recipe: Mapping[str, Any] | None = None) -> bytes:
    """The image's file. The recipe is JSON: in a PNG's text chunk `fewstep`, else in EXIF's UserComment.

    Raises FewstepError for a recipe that the kind has no room for.
    """
    data, text = io.BytesIO(), json.dumps(recipe, ensure_ascii=kind != "png")
    try:
        if kind == "png":
            info = PngInfo()
            if recipe is not None:
                info.add_itxt(RECIPE, text)
            image.save(data, "PNG", pnginfo=info, **SAVING[kind])
        else:
            exif = Image.Exif()
            if recipe is not None:
                exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = COMMENT + text.encode("ascii")
            image.save(data, kind.upper(), quality=QUALITY, exif=exif, **SAVING[kind])
    except ValueError as error:  # a JPEG's EXIF has 64 KiB
        raise FewstepError(
            f"the recipe does not fit into a {kind} file ({error})", f"use {option('format')} png"
        ) from error
    return data.getvalue()


def recipe_in(picture: Path) -> dict[str, Any]:
    """The recipe that a picture's file carries, as it stands there.

    Raises FewstepError for a file that is no picture, and for one that carries no recipe.
    """
    opened(picture)
    with Image.open(picture) as file:
        file.load()  # a PNG's text may stand behind its pixels
        text = getattr(file, "text", {}).get(RECIPE)
        try:
            comment = file.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
        except Exception:  # damaged EXIF makes Pillow raise nearly anything
            comment = b""
    if text is None and isinstance(comment, bytes):
        text = comment.removeprefix(COMMENT).decode("ascii", "replace")
    try:
        recipe = json.loads(text or "")
    except (ValueError, RecursionError):
        recipe = None
    if not isinstance(recipe, dict) or RECIPE not in recipe:  # the version
        raise FewstepError(
            f"{picture} carries no recipe of fewstep",
            "fewstep sample writes one into each picture; programs that save a picture again may leave it out",
        )
    return recipe


def is_picture(path: Path) -> bool:
    """Whether a file begins as a PNG, a JPEG or a WebP does."""
    try:
        start = first_bytes(path, 12)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return False
    return start.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")) or (start[:4], start[8:]) == (b"RIFF", b"WEBP")


def words_of(prompt: str) -> str:
    """The prompt's words, of any script, joined by hyphens: what a file is named for. "image" if there are none.

    At most 48 characters, so that names stay below the 255 bytes that file systems take.
    """
    encoding = sys.getfilesystemencoding()
    kept = "".join(_in_name(character) for character in unicodedata.normalize("NFC", prompt.lower()))
    known = kept.encode(encoding, "ignore").decode(encoding)
    return "-".join(known.split())[:48].strip("-") or "image"


def _in_name(character: str) -> str:
    """A letter, mark or digit as it is; nothing for a joiner, which is within a word; else the space between words."""
    category = unicodedata.category(character)
    return character if category[0] in "LMN" else "" if category == "Cf" else " "
