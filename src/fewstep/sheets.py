"""Contact sheets: pictures in a grid, every row and column said in words."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

INK, FAINT, PAPER = "#1a1a1a", "#595959", "white"
MARGIN, GAP, WORDS = 210, 6, 34  # pixels: left of the rows, between cells, above or below them
LINE = 23  # letters of a label's line, over 128 pixels
CONTACT, WIDEST = 256, 8  # pixels of a picture's longer side, and pictures in a row, on a contact sheet
SIZES = (16, 14, 12, 10)  # of a row's label, the first that fits
TRIED = (  # scale and JPEG's quality of a small file, in turn: 128 pixels become 96
    *((scale, quality) for scale in (1.0, 0.875, 0.75) for quality in (90, 80, 70)),
    *((0.75, quality) for quality in (50, 30, 10)),
)


class Cell(NamedTuple):
    """A picture on a contact sheet."""

    image: Image.Image  # as `small` makes it
    prompt: str
    seed: int


class ScoredSheet(NamedTuple):
    """A sheet, and what its pictures scored."""

    image: Image.Image
    values: Mapping[str, float]


class SheetRow(NamedTuple):
    """One row of a sheet."""

    label: str  # in bold print
    note: str  # under it
    images: Sequence[Image.Image]


def grid(rows: Sequence[SheetRow], columns: Sequence[str], cell: int = 128) -> Image.Image:
    """Rows of pictures over the same columns, at `cell` pixels, with the rows' labels at their left."""
    width, height = MARGIN + (cell + GAP) * len(columns), WORDS + (cell + GAP) * len(rows)
    sheet = Image.new("RGB", (width, height), PAPER)
    pen, noted, small = ImageDraw.Draw(sheet), ImageFont.load_default(13), ImageFont.load_default(11)
    for number, column in enumerate(columns):
        pen.multiline_text((MARGIN + number * (cell + GAP), 3), wrapped(column), INK, small, spacing=1)
    for line, row in enumerate(rows):
        top = WORDS + line * (cell + GAP)
        pen.text((8, top + cell // 2 - 4), row.label, INK, font_of(row.label, MARGIN - 16), anchor="ls")
        pen.multiline_text((8, top + cell // 2 + 2), row.note, FAINT, noted, spacing=2)
        for number, image in enumerate(row.images):
            sheet.paste(sized(image, cell), (MARGIN + number * (cell + GAP), top))
    return sheet


def font_of(label: str, width: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The largest font in which the label takes at most `width` pixels; the smallest if it does in none."""
    fonts = [ImageFont.load_default(size) for size in SIZES]
    return next((font for font in fonts if font.getlength(label) <= width), fonts[-1])


def captioned(images: Sequence[Image.Image], labels: Sequence[str], columns: int = 8) -> Image.Image:
    """The pictures, all of one size, in reading order, each over its label, which may have two lines."""
    cell, height = images[0].size
    lines = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (cell + GAP), lines * (height + WORDS)), PAPER)
    pen, small = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        x, y = number % columns * (cell + GAP) + GAP // 2, number // columns * (height + WORDS)
        sheet.paste(image, (x, y))
        text = label if "\n" in label else wrapped(label)
        pen.multiline_text((x, y + height + 1), text, INK, small, spacing=1)
    return sheet


def contact_sheet(pictures: Sequence[Cell], columns: int) -> Image.Image:
    """Pictures of one size in reading order, each at most CONTACT pixels a side, over its prompt and its seed."""
    images = [picture.image for picture in pictures]
    letters = max(images[0].width * LINE // 128, 4)
    labels = [f"{cut(picture.prompt, letters)}\nseed {picture.seed}" for picture in pictures]
    return captioned(images, labels, columns)


def contact_columns(pictures: int, count: int) -> int:
    """How many stand in a row: those of a prompt where each has several, else as many as make about a square."""
    return min(count, WIDEST) if count > 1 else min(math.ceil(math.sqrt(pictures)), WIDEST)


def small(image: Image.Image) -> Image.Image:
    """The picture at most CONTACT pixels a side."""
    scale = min(1.0, CONTACT / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def cut(text: str, length: int) -> str:
    """The text in one line of at most `length` letters; an ellipsis stands for what is left out."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def sized(image: Image.Image, cell: int) -> Image.Image:
    """The image at `cell` pixels a side."""
    return image if image.size == (cell, cell) else image.resize((cell, cell), Image.Resampling.LANCZOS)


def small_jpeg(image: Image.Image, largest: int) -> bytes:
    """The picture as a JPEG of at most `largest` bytes, as large and as good as that allows; else the smallest."""
    data = b""
    for scale, quality in TRIED:
        size = round(image.width * scale), round(image.height * scale)
        scaled = image if scale == 1 else image.resize(size, Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        scaled.convert("RGB").save(buffer, "JPEG", quality=quality, optimize=True)
        data = buffer.getvalue()
        if len(data) <= largest:
            break
    return data


def wrapped(text: str, length: int = LINE) -> str:
    """The text in two lines of at most `length` letters; an ellipsis stands for what is cut."""
    if len(text) <= length:
        return text
    at = text.rfind(" ", 0, length + 1)
    at = at if at > 0 else length
    rest = text[at:].strip()
    return f"{text[:at]}\n{rest if len(rest) <= length else rest[: length - 1].rstrip() + '…'}"
