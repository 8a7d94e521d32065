"""Pictures and captions through a model's encoders, in batches of one shape and size, into the stores."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.data.cache.ahead import Prepared
from fewstep.data.cache.encoded import DEVIATIONS, INPAINTING, POOLED, SIZES, VALUES
from fewstep.data.cache.store import Store, Writer
from fewstep.data.framing import Framing, PictureShape
from fewstep.models.inpainting import mask_and_latents, training_mask
from fewstep.models.model import Model

BATCH = 8  # pictures or captions encoded at once, at most
PIXELS = BATCH * 512**2  # of pictures encoded at once, which keeps the memory of an autoencoder as small for large ones


class Cut(NamedTuple):
    """A picture to encode."""

    key: bytes
    pixels: Tensor  # (3, H, W) uint8
    sizes: tuple[int, ...]  # SDXL's six


class Open(NamedTuple):
    """A batch that is being filled. A picture has a place of its own in it, whichever others are missing."""

    number: int  # of the batch, among those of its shape
    pictures: dict[int, Cut]  # by place in the batch


class PictureEncoder:
    """Encodes pictures in batches of one shape.

    A picture's place in its batch follows from its place among all of its shape, and the places of pictures that are
    kept already stay empty. So its latents are the same bits whatever was kept before, as after a killed run.
    """

    def __init__(self, model: Model, store: Store, framing: Framing) -> None:
        self.model, self.store, self.framing = model, store, framing
        self._places: Counter[PictureShape] = Counter()  # pictures so far, those that are kept counted too
        self._taken: set[bytes] = set()  # keys of pictures so far
        self._writers: dict[PictureShape, Writer] = {}
        self._open: dict[PictureShape, Open] = {}

    def add(self, sample: Prepared) -> None:
        """Take the sample's pictures, and encode the batches that are full."""
        for view in self.framing.views_of(sample.facts):
            place, key = self._places[view.shape], view.key(sample.facts)
            self._places[view.shape] += 1
            if key in sample.pixels and key not in self._taken:
                self._taken.add(key)
                self._take(place, view.shape, Cut(key, sample.pixels[key], view.sizes(sample.facts)))

    def _take(self, place: int, shape: PictureShape, picture: Cut) -> None:
        most = at_once(shape)
        number, place = divmod(place, most)
        if shape in self._open and self._open[shape].number != number:
            self._encode(shape)
        self._open.setdefault(shape, Open(number, {})).pictures[place] = picture
        if place == most - 1:
            self._encode(shape)

    def finish(self) -> None:
        """Encode what is left, and write all that is encoded to files."""
        for shape in list(self._open):
            self._encode(shape)
        self.save()

    def save(self) -> None:
        """Write what is encoded to files."""
        for writer in self._writers.values():
            writer.flush()

    def _encode(self, shape: PictureShape) -> None:
        pictures = self._open.pop(shape).pictures
        made = self._rows(shape, pictures)
        rows = torch.tensor(sorted(pictures))
        keys = [pictures[place].key for place in sorted(pictures)]
        writer = self._writers.setdefault(shape, Writer(self.store))
        writer.add(keys, {name: x.cpu()[rows] for name, x in made.items()})

    def _rows(self, shape: PictureShape, pictures: dict[int, Cut]) -> dict[str, Tensor]:
        """The tensors of a batch, all of its rows; those of empty places mean nothing."""
        most = at_once(shape)
        values, sizes = torch.zeros(most, 3, *shape, dtype=torch.uint8), torch.zeros(most, 6)
        for place, picture in pictures.items():
            values[place], sizes[place] = picture.pixels, torch.tensor(picture.sizes)
        pixels = values.to(self.model.device).float() / 127.5 - 1
        mean, deviation = self.model.posterior(pixels)
        made = {VALUES: mean.half(), SIZES: sizes}
        if self.framing.deviations:
            made[DEVIATIONS] = deviation.half()
        if self.model.inpaints:
            seeds = [int.from_bytes(pictures[i].key[:7], "little") if i in pictures else 0 for i in range(most)]
            masks = torch.stack([training_mask(seed, *shape) for seed in seeds])
            made[INPAINTING] = mask_and_latents(self.model, pixels, masks.to(pixels.device)).half()
        return made


def at_once(shape: PictureShape) -> int:
    """How many pictures of this shape are encoded together."""
    return min(BATCH, max(1, PIXELS // (shape[0] * shape[1])))


def embedded(batch: Sequence[str], model: Model) -> dict[str, Tensor]:
    """The embeddings of the captions, in half precision."""
    conditioning = model.embed(batch)
    pooled = {} if conditioning.pooled is None else {POOLED: conditioning.pooled.half().cpu()}
    return {VALUES: conditioning.text.half().cpu()} | pooled
