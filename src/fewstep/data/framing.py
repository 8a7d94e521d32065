"""How images become the pictures that a model is trained on: their shapes, where they are cut, mirrored ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from math import log
from struct import pack
from typing import NamedTuple

from PIL import Image

from fewstep.images import placed

FINEST = 64  # pixels: the largest step between the sides of shapes
STEPS = 8  # a square's side is at least so many steps
LONGEST = 2  # the longest side of a shape, in sides of the square of its area; the shortest is 1 / LONGEST
KEY = 16  # bytes of a key

PictureShape = tuple[int, int]  # height and width in pixels


class ImageFacts(NamedTuple):
    """What is known of an image without its pixels."""

    content: bytes  # a hash of its file, KEY bytes
    height: int  # as it is seen
    width: int


class Framed(NamedTuple):
    """One picture to train on, cut from an image that was scaled to cover the picture's shape."""

    shape: PictureShape
    top: int  # of the cut, in the scaled image as it is seen
    left: int
    flip: bool  # whether the picture is mirrored then

    def key(self, facts: ImageFacts) -> bytes:
        """What tells this view of the image from all others."""
        return blake2b(
            facts.content + pack("<4i?", *self.shape, self.top, self.left, self.flip), digest_size=KEY
        ).digest()

    def sizes(self, facts: ImageFacts) -> tuple[int, ...]:
        """SDXL's six: height and width of the image, top and left of the cut, height and width of the picture.

        The cut of a mirrored picture is where it lies in the mirrored image.
        """
        width = placed((facts.width, facts.height), *self.shape[::-1])[0][0]
        left = width - self.shape[1] - self.left if self.flip else self.left
        return facts.height, facts.width, self.top, left, *self.shape

    def of(self, image: Image.Image) -> Image.Image:
        """The picture. image: RGB, as it is seen."""
        height, width = self.shape
        size, _, _ = placed(image.size, width, height)
        scaled = image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
        cut = scaled.crop((self.left, self.top, self.left + width, self.top + height))
        return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flip else cut


@dataclass(frozen=True)
class Framing:
    """Which pictures are made of an image."""

    size: int  # pixels: the side of a square picture
    multiple: int = 8  # of which a picture's sides must be multiples
    buckets: bool = False  # whether a picture has the shape nearest to its image's, instead of a square
    crops: int = 0  # how many pictures are cut of an image at random places; 0 = one at the centre
    flip: bool = False  # whether each picture is there mirrored too
    deviations: bool = False  # whether the deviations of the latents are kept besides their means

    @property
    def views(self) -> int:
        """How many pictures are made of each image."""
        return max(self.crops, 1) * (2 if self.flip else 1)

    @cached_property
    def shapes(self) -> tuple[PictureShape, ...]:
        """The shapes of pictures. Their areas are the square's, or up to a step of one side less."""
        if not self.buckets:
            return ((self.size, self.size),)
        step = max(min(FINEST, self.size // STEPS) // self.multiple, 1) * self.multiple
        sides = range(max(self.size // LONGEST // step, 1) * step, self.size + 1, step)
        upright = {(self.size**2 // side // step * step, side) for side in sides}
        return tuple(sorted({shape for pair in upright for shape in (pair, pair[::-1])}))

    def shape_of(self, height: int, width: int) -> PictureShape:
        """The shape of an image's pictures: the one whose ratio of sides is nearest."""
        return min(self.shapes, key=lambda shape: abs(log(shape[0] / shape[1]) - log(height / width)))

    def views_of(self, facts: ImageFacts) -> Iterator[Framed]:
        """The pictures of an image. Random places depend on its content alone."""
        shape = self.shape_of(facts.height, facts.width)
        scaled, left, top = placed((facts.width, facts.height), *shape[::-1])
        cuts = [(top, left)]
        if self.crops:
            free = scaled[1] - shape[0], scaled[0] - shape[1]
            cuts = [_anywhere(facts.content, crop, *free) for crop in range(self.crops)]
        for cut in cuts:
            for flip in (False, True) if self.flip else (False,):
                yield Framed(shape, *cut, flip)

    def cut_away(self, height: int, width: int) -> float:
        """The share of an image's area that its picture at the centre leaves out."""
        ratio, other = height / width, self.shape_of(height, width)
        return 1 - min(ratio * other[1] / other[0], other[0] / other[1] / ratio)


def _anywhere(content: bytes, crop: int, down: int, right: int) -> tuple[int, int]:
    """Top and left of a random cut, up to `down` and `right`, the same for the same content and number of the crop."""
    draws = blake2b(content + pack("<q", crop), digest_size=16).digest()
    return int.from_bytes(draws[:8], "little") % (down + 1), int.from_bytes(draws[8:], "little") % (right + 1)
