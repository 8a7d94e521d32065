"""Drawings in other colours, so that the model learns colour words for all things: "red robot", "green car".

All functions are pure. A drawing's main colour is the colour of most of its pixels that are not white. Only this colour
is replaced, with its shading, as in an editor's "replace colour". Outlines, eyes and the background stay.
"""

import random
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recipes.emoji.captions import says_colour

Array = NDArray[np.floating[Any]]

PALETTE = {  # sRGB
    "red": (218, 45, 48),
    "orange": (245, 135, 35),
    "yellow": (250, 208, 50),
    "green": (70, 165, 75),
    "blue": (50, 120, 220),
    "purple": (140, 80, 200),
    "pink": (246, 135, 185),
    "brown": (130, 84, 55),
    "black": (52, 52, 58),
    "grey": (150, 152, 156),
}
PAPER = 0.97  # OKLab lightness above which a pixel is background or highlight
NEAR, FAR = 0.09, 0.17  # OKLab distances: below the first a pixel has the colour fully, above the second not at all
SHADING = 0.35  # weight of lightness in those distances, so that shades of a colour count as that colour
LEAST = 0.3  # smallest share of the drawing that a main colour has
CERTAIN = 0.1  # OKLab distance within which a colour has a name
CANDIDATES = 64  # pixels whose colours are candidates for the main one
AS_THEY_ARE = ("people-body", "symbols")  # groups whose colours have a meaning, or that show skin

TO_LMS = np.array([
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
], np.float32)  # fmt: skip
TO_LAB = np.array([
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
], np.float32)  # fmt: skip


class Main(NamedTuple):
    """A drawing's main colour."""

    colour: Array  # (3,) OKLab
    mask: Array  # (H, W) in [0, 1]: share of the colour in each pixel
    share: float  # its share of the drawing


def oklab(rgb: NDArray[np.uint8]) -> Array:
    """sRGB (..., 3) as OKLab (Ottosson 2020), float32."""
    lab: Array = np.cbrt(LINEAR[rgb] @ TO_LMS.T) @ TO_LAB.T
    return lab


def srgb(lab: Array) -> NDArray[np.uint8]:
    """OKLab (..., 3) as sRGB, cut to what a screen shows."""
    linear = np.clip(((lab @ np.linalg.inv(TO_LAB).T) ** 3) @ np.linalg.inv(TO_LMS).T, 0, 1)
    x = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    levels: NDArray[np.uint8] = np.round(255 * x).astype(np.uint8)
    return levels


def linear_light(level: Array) -> Array:
    """sRGB's grey levels 0...255 as light in [0, 1]."""
    x = level / 255
    light: Array = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4).astype(np.float32)
    return light


LINEAR = linear_light(np.arange(256, dtype=np.float64))
COLOURS = {name: oklab(np.array(rgb, np.uint8)) for name, rgb in PALETTE.items()}


def distance(lab: Array, other: Array) -> Array:
    """The distance of colours (..., 3), in which lightness counts less."""
    away = lab - other
    length: Array = np.sqrt((SHADING * away[..., 0]) ** 2 + away[..., 1] ** 2 + away[..., 2] ** 2)
    return length


def main_colour(rgb: NDArray[np.uint8]) -> Main:
    """The colour of most pixels of a drawing (H, W, 3) on white."""
    lab = oklab(rgb)
    ink = lab[..., 0] < PAPER
    if not ink.any():
        return Main(np.zeros(3), np.zeros(rgb.shape[:2]), 0.0)
    pixels = lab[ink]
    some = pixels[:: max(1, len(pixels) // CANDIDATES)]
    near = max((distance(pixels, one) < NEAR for one in some), key=np.count_nonzero)
    colour = pixels[near].mean(0)
    mask = np.clip((FAR - distance(lab, colour)) / (FAR - NEAR), 0, 1) * ink
    return Main(colour, mask, float(mask.sum() / ink.sum()))


def may_change(row: dict[str, Any]) -> bool:
    """Whether the label of a drawing is still right if the drawing has another colour."""
    return row["group"] not in AS_THEY_ARE and row["style"] != "emojione-bw" and not says_colour(row["label"])


def other_colours(main: Main, count: int, rng: random.Random) -> list[str]:
    """`count` other colours for a drawing, chosen with `rng`; none if it has no main colour."""
    others = [name for name in PALETTE if name != name_of(main)]
    return rng.sample(others, count) if main.share >= LEAST else []


def name_of(main: Main) -> str | None:
    """The name of the main colour; None if there is no main colour, or no name for it here."""
    away = {name: float(np.linalg.norm(main.colour - colour)) for name, colour in COLOURS.items()}
    name = min(away, key=lambda one: away[one])
    return name if main.share >= LEAST and away[name] <= CERTAIN else None


def recoloured(rgb: NDArray[np.uint8], main: Main, colour: str) -> NDArray[np.uint8]:
    """The drawing with its main colour replaced."""
    changed, some = rgb.copy(), main.mask > 0
    changed[some] = srgb(oklab(rgb[some]) + main.mask[some, None] * (COLOURS[colour] - main.colour))
    return changed
