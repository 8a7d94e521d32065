"""What is in a source of captioned images: sizes, doubles, what is broken, captions that are too long."""

import io
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from math import log
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from PIL import Image

from fewstep.data.framing import Framing
from fewstep.data.sources import open_source
from fewstep.data.sources.filters import Filters, kept
from fewstep.data.sources.source import Broken, Sample
from fewstep.images import on_white, opened, orientation
from fewstep.io import sha256_bytes

SHAPES = {"1:2": 0.5, "9:16": 9 / 16, "2:3": 2 / 3, "3:4": 3 / 4, "4:5": 4 / 5, "1:1": 1, "5:4": 5 / 4, "4:3": 4 / 3,
          "3:2": 3 / 2, "16:9": 16 / 9, "2:1": 2}  # width to height  # fmt: skip
THUMBNAIL = 16  # pixels a side, by which pictures are compared
ALIKE = 3  # largest mean difference of thumbnails, of 255, of pictures that look alike
MOST_COMPARED = 50_000  # images above which none are compared by their looks


class ImageLook(NamedTuple):
    """What one look at an image tells."""

    sample: Sample
    width: int  # as it is seen
    height: int
    format: str
    turned: bool  # whether EXIF turns or mirrors it
    transparent: bool
    animated: bool
    sha256: str
    thumbnail: bytes  # RGB

    @property
    def ratio(self) -> float:
        """Width over height."""
        return self.width / self.height

    @property
    def smaller_side(self) -> int:
        """In pixels."""
        return min(self.width, self.height)

    def name_in(self, source: str) -> str:
        """The key as it goes on after the source's name."""
        return self.sample.key.removeprefix(source).lstrip("/")


class Report(NamedTuple):
    """What is in a source."""

    looks: list[ImageLook]  # at the images that count
    broken: list[Broken]
    left_out: str  # in words
    doubles: list[list[ImageLook]]  # images with the same bytes
    alike: list[list[ImageLook]] | None  # others that look alike; None = not compared
    lengths: list[int]  # tokens of each caption, begin and end included; empty for a model without text
    limit: int  # tokens that the model's text encoder takes
    size: int  # pixels that the model is trained at

    @property
    def captions(self) -> list[str]:
        """All captions."""
        return [caption for look in self.looks for caption in look.sample.captions]

    @property
    def below(self) -> list[ImageLook]:
        """Images that are scaled up to be trained on."""
        return [look for look in self.looks if look.smaller_side < self.size]

    @property
    def repeated(self) -> list[tuple[str, int]]:
        """Captions that several images have, and how many; the most frequent first."""
        counts = Counter(caption for look in self.looks for caption in set(look.sample.captions) if caption)
        return [(caption, count) for caption, count in counts.most_common() if count > 1]

    @property
    def empty(self) -> int:
        """How many captions say nothing."""
        return sum(not caption for caption in self.captions)

    @property
    def too_long(self) -> int:
        """How many captions are cut off."""
        return sum(length > self.limit for length in self.lengths)

    @property
    def shapes(self) -> dict[str, int]:
        """How many images have which shape, nearly."""
        counts = Counter(shape_of(look.ratio) for look in self.looks)
        return {shape: counts[shape] for shape in SHAPES if counts[shape]}

    @property
    def median(self) -> tuple[int, int]:
        """The median width and height."""
        return round(median(look.width for look in self.looks)), round(median(look.height for look in self.looks))

    def cut_away(self, buckets: bool) -> float:
        """The mean share of an image that is cut away, by squares or by the shapes of buckets."""
        framing = Framing(self.size, buckets=buckets)
        return sum(framing.cut_away(look.height, look.width) for look in self.looks) / max(len(self.looks), 1)


def shape_of(ratio: float) -> str:
    """The name of the shape whose width over height is nearest."""
    return min(SHAPES, key=lambda shape: abs(log(SHAPES[shape]) - log(ratio)))


class Intake(NamedTuple):
    """How a model takes images and captions."""

    lengths: Callable[[Sequence[str]], list[int]]  # tokens of each caption, begin and end included
    limit: int  # of these tokens
    size: int  # pixels that it is trained at
    takes_text: bool = True


def check(given: str | Path, filters: Filters, intake: Intake) -> Report:
    """What is in the source, for a model. Nothing that is broken stops it."""
    captioned = intake.takes_text
    source, looks = open_source(given, captioned, filters.columns), dict[int, ImageLook]()

    def size_of(sample: Sample) -> tuple[int, int]:
        look = looks[id(sample)] = look_at(sample)
        return look.width, look.height

    found = kept(source, filters._replace(skip_broken=True), captioned, size_of)
    seen = [looks[id(sample)] for sample in found.samples]
    doubles = groups(seen, lambda look: look.sha256)
    left_out = ", ".join(filter(None, (source.left_out, found.left_out)))
    captions = [caption for look in seen for caption in look.sample.captions]
    lengths = intake.lengths(captions) if captioned else []
    return Report(seen, found.broken, left_out, doubles, alike(seen), lengths, intake.limit, intake.size)


def look_at(sample: Sample) -> ImageLook:
    """What one look at the image tells. Raises FewstepError if it cannot be read whole."""
    data = sample.open()
    image = opened(data, sample.key)
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as file:
        kind, turned, frames = file.format or "", orientation(file) != 1, getattr(file, "n_frames", 1)
    transparent = image.getchannel("A").getextrema() != (255, 255)
    thumbnail = on_white(image).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX).tobytes()
    return ImageLook(sample, *image.size, kind, turned, transparent, frames > 1, sha256_bytes(data), thumbnail)


def groups(looks: Iterable[ImageLook], key: Callable[[ImageLook], object]) -> list[list[ImageLook]]:
    """Images that have the same key, where several have it."""
    found = defaultdict[object, list[ImageLook]](list)
    for look in looks:
        found[key(look)].append(look)
    return [group for group in found.values() if len(group) > 1]


def alike(looks: Sequence[ImageLook]) -> list[list[ImageLook]] | None:
    """Images with different bytes that look alike, such as one that was saved again; None for too many to compare.

    Only thumbnails of nearly the same brightness are compared, in the order of brightness.
    """
    once = list({look.sha256: look for look in looks}.values())
    if len(once) > MOST_COMPARED:
        return None
    pixels = (
        np.frombuffer(b"".join(look.thumbnail for look in once), np.uint8)
        .reshape(len(once), 3 * THUMBNAIL**2)
        .astype(np.int16)
    )
    means = pixels.mean(axis=1)
    order = np.argsort(means, kind="stable")
    pixels, means = pixels[order], means[order]
    first = list(range(len(once)))  # of the group that each belongs to
    for place in range(len(once)):
        end = int(np.searchsorted(means, means[place] + ALIKE, side="right"))
        near = np.abs(pixels[place + 1 : end] - pixels[place]).mean(axis=1) <= ALIKE
        for other in np.flatnonzero(near) + place + 1:
            first[other] = min(first[other], first[place])
    numbers = {id(once[number]): first[place] for place, number in enumerate(order)}
    return groups(once, lambda look: numbers[id(look)])
