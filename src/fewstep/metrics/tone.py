"""Tone: how strong the contrast and the colours of pictures are. A burnt picture has more of both, a pale one less."""

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor


class Tone(NamedTuple):
    """Means over pictures, in units of pixels in [-1, 1]."""

    contrast: float  # standard deviation of a picture's brightness, the mean of its colours
    saturation: float  # difference between a pixel's strongest and weakest colour


def tone(batches: Iterable[Tensor]) -> Tone:
    """The tone of pictures. batches: pixels (B, 3, H, W) in [-1, 1]."""
    count, contrast, saturation = 0, 0.0, 0.0
    for x in batches:
        count += len(x)
        contrast += float(x.mean(1).flatten(1).std(1).double().sum())
        saturation += float((x.amax(1) - x.amin(1)).flatten(1).mean(1).double().sum())
    return Tone(contrast / count, saturation / count)
