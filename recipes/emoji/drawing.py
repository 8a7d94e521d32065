"""Reads drawings from the packages, rasterises them, and puts them on white in one size."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import resvg_py
from PIL import Image, ImageDraw, ImageFont

from recipes.emoji.captions import STYLES
from recipes.emoji.names import Concept, match_files, match_icons, old_names, read_names
from recipes.emoji.packages import fetch, members, read_json

SUPERSAMPLE = 2
FILL_AT_LEAST, FILL_TO = 0.8, 0.9  # longer side of the drawing over that of the canvas
EMPTY_ABOVE = 250  # an image without a darker pixel than this shows nothing
CONCEPTS_PACKAGE = "emojibase-data"

# packages of files named by code point: style -> (prefix, suffix) inside the tarball; Fluent forgot some dots
FILES = {
    "fluent-3d": ("package/assets/", "webp"),
    "fluent-color": ("package/assets/", "svg"),
    "fluent-flat": ("package/assets/", "svg"),
    "noto-2018": ("package/svg/emoji_u", "svg"),
    "emojione": ("package/assets/svg/", "svg"),
    "emojione-bw": ("package/assets/svg_bw/", "svg"),
}
FONT_FILE = "package/400Regular/NotoEmoji_400Regular.ttf"
NAME_SOURCE = "@iconify-json/noto"  # its chars.json also names the drawings of noto-v1, which has none


@dataclass(frozen=True)
class SourceDrawing:
    """One file of a package to render."""

    kind: str  # "svg" or "image" (webp, png)
    data: bytes


@dataclass(frozen=True)
class DrawingJob:
    """One image to make."""

    style: str
    concept: Concept
    drawing: SourceDrawing
    file: Path
    size: int


def read_drawings(style: str, downloads: Path, concepts: Mapping[str, Concept]) -> dict[str, SourceDrawing]:
    """Code points -> drawing, for every concept this style has, in the order of `concepts`."""
    tarball = fetch(STYLES[style].package, downloads)
    if style in FILES:
        return file_drawings(tarball, *FILES[style], concepts)
    if style == "noto-mono":
        return font_drawings(tarball, concepts)
    return icon_drawings(style, tarball, downloads, concepts)


def file_drawings(tarball: Path, prefix: str, suffix: str, concepts: Iterable[str]) -> dict[str, SourceDrawing]:
    """Drawings that are files of their own in the tarball."""
    data = dict(members(tarball, lambda name: name.startswith(prefix) and name.endswith(suffix)))
    kind = "svg" if suffix == "svg" else "image"
    files = match_files(data, prefix, suffix, concepts)
    return {code: SourceDrawing(kind, data[name]) for code, name in files.items()}


def icon_drawings(
    style: str, tarball: Path, downloads: Path, concepts: Mapping[str, Concept]
) -> dict[str, SourceDrawing]:
    """Drawings of an iconify package, one JSON document of SVG bodies."""
    book, chars = read_json(tarball, "package/icons.json", "package/chars.json")
    names: dict[str, str] = {}
    if not chars:
        names = read_names(fetch(CONCEPTS_PACKAGE, downloads), concepts)
        (current,) = read_json(fetch(NAME_SOURCE, downloads), "package/chars.json")
        names = {**names, **old_names(style, current, names)}
    icons = {**book["icons"], **book.get("aliases", {})}
    found = match_icons(icons, chars, names, concepts)
    return {code: SourceDrawing("svg", icon_svg(name, book)) for code, name in found.items()}


def icon_svg(name: str, book: Mapping[str, Any]) -> bytes:
    """The SVG document of one icon of an iconify book, aliases followed."""
    entry: dict[str, Any] = {}
    while name in book.get("aliases", {}):
        alias = book["aliases"][name]
        entry, name = {**alias, **entry}, alias["parent"]
    entry = {**book["icons"][name], **entry}
    left, top = entry.get("left", 0), entry.get("top", 0)
    width, height = (entry.get(key, book.get(key, 16)) for key in ("width", "height"))
    body = entry["body"]
    if entry.get("hFlip"):
        body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
    head = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {head} viewBox="{left} {top} {width} {height}">{body}</svg>'.encode()


def font_drawings(tarball: Path, concepts: Iterable[str]) -> dict[str, SourceDrawing]:
    """Glyphs of the Noto Emoji font, Regular; single code points only, drawn large and centred."""
    ((_, data),) = members(tarball, lambda name: name == FONT_FILE)
    font = ImageFont.truetype(io.BytesIO(data), 400, layout_engine=ImageFont.Layout.BASIC)
    missing = glyph(font, "\U0010ffff")
    drawings = {}
    for code in concepts:
        image = glyph(font, chr(int(code, 16))) if "-" not in code else None
        if image is not None and (missing is None or image.tobytes() != missing.tobytes()):
            stream = io.BytesIO()
            image.save(stream, "png", compress_level=1)
            drawings[code] = SourceDrawing("image", stream.getvalue())
    return drawings


def glyph(font: ImageFont.FreeTypeFont, character: str, canvas: int = 450) -> Image.Image | None:
    """One glyph in black on a transparent canvas, its box centred; None if it has no ink."""
    left, top, right, bottom = font.getbbox(character)
    if right <= left or bottom <= top:
        return None
    image = Image.new("RGBA", (canvas, canvas), (0, 0, 0, 0))
    at = ((canvas - left - right) / 2, (canvas - top - bottom) / 2)
    ImageDraw.Draw(image).text(at, character, font=font, fill=(0, 0, 0, 255))
    return image


def rasterise(drawing: SourceDrawing, pixels: int) -> Image.Image:
    """The drawing on a transparent square canvas, (pixels, pixels) RGBA; its aspect ratio is kept."""
    if drawing.kind == "svg":
        text = drawing.data.decode("utf-8-sig")
        image = open_rgba(resvg_py.svg_to_bytes(svg_string=text, width=pixels, skip_system_fonts=True))
        if image.height > pixels:
            image = open_rgba(resvg_py.svg_to_bytes(svg_string=text, height=pixels, skip_system_fonts=True))
    else:
        image = open_rgba(drawing.data)
        scale = pixels / max(image.size)
        sides = (round(image.width * scale), round(image.height * scale))
        image = image.resize(sides, Image.Resampling.LANCZOS)
    if image.size == (pixels, pixels):
        return image
    canvas = Image.new("RGBA", (pixels, pixels), (0, 0, 0, 0))
    canvas.paste(image, ((pixels - image.width) // 2, (pixels - image.height) // 2))
    return canvas


def open_rgba(data: bytes) -> Image.Image:
    """An image file in memory, decoded to RGBA."""
    with Image.open(io.BytesIO(bytes(data))) as image:
        return image.convert("RGBA")


def ink(image: Image.Image) -> tuple[int, int, int, int] | None:
    """The box around what is not transparent; None if nothing is."""
    return image.getchannel("A").point(lambda alpha: 255 * (alpha > 16)).getbbox()


def draw(drawing: SourceDrawing, size: int, keep_size: bool = False) -> Image.Image | None:
    """The finished image, (size, size) RGB on white; None if nothing is to be seen.

    The package's own padding stays, but a drawing whose longer side is under 80 % of the canvas is enlarged
    to 90 % and centred, unless `keep_size`.
    """
    pixels = SUPERSAMPLE * size
    image = rasterise(drawing, pixels)
    box = ink(image)
    if box is None:
        return None
    fill = max(box[2] - box[0], box[3] - box[1]) / pixels
    if fill < FILL_AT_LEAST and not keep_size:
        image = rasterise(drawing, round(pixels * min(FILL_TO / fill, 16)))
        box = ink(image) or box
        left, top = (box[0] + box[2] - pixels) // 2, (box[1] + box[3] - pixels) // 2
        image = image.crop((left, top, left + pixels, top + pixels))
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    flat = Image.alpha_composite(white, image).convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
    seen = flat.convert("L").point(lambda grey: 255 * (grey <= EMPTY_ABOVE)).getbbox()
    return flat if seen else None


def make(job: DrawingJob) -> str:
    """Write the image to its file. Returns '', or the reason why there is none."""
    if job.file.exists():
        return ""
    try:
        image = draw(job.drawing, job.size, job.concept.size_matters)
    except (ValueError, OSError) as error:
        return f"broken: {error}"
    if image is None:
        return "empty"
    partial = job.file.with_suffix(".partial")
    image.save(partial, "png")
    partial.replace(job.file)
    return ""
