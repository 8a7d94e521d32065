"""The random numbers of training, which depend only on (seed, epoch, sample index).

So a resumed run and a run on several processes draw the same numbers as one uninterrupted process.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class SampleId:
    """One visit of one sample."""

    seed: int
    epoch: int
    index: int  # of the sample in the data set; below 0 = an order in this epoch


def generator(sample: SampleId) -> torch.Generator:
    """The CPU generator of one visit of one sample."""
    digest = hashlib.blake2b(struct.pack("<qqq", sample.seed, sample.epoch, sample.index), digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)


def normal(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Standard normal values (B, *shape), float32, with one generator per sample."""
    return torch.stack([torch.randn(tuple(shape), generator=g) for g in generators])


def integers(generators: Sequence[torch.Generator], high: int) -> Tensor:
    """Whole numbers in [0, high), (B,) int64, with one generator per sample."""
    return torch.cat([torch.randint(high, (1,), generator=g) for g in generators])


def uniform(generators: Sequence[torch.Generator], low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform values in [low, high), (B,) float32, with one generator per sample."""
    return low + (high - low) * torch.cat([torch.rand(1, generator=g) for g in generators])


@lru_cache(maxsize=4)
def _permutation(items: int, seed: int, epoch: int, of: int = -1) -> Tensor:
    """The numbers from 0 to `items`, shuffled. of: what is shuffled, as the index of a SampleId."""
    return torch.randperm(items, generator=generator(SampleId(seed, epoch, of)))


@dataclass(frozen=True)
class Order:
    """The order of visits. Each epoch visits every sample once, in an order of its own.

    samples: size of the data set. seed: of the run.
    """

    samples: int
    seed: int

    def visits(self, start: int, count: int) -> list[SampleId]:
        """The visits with the numbers start ... start + count - 1 of the run."""
        return self._at(range(start, start + count))

    def _at(self, places: range, group: int = 0) -> list[SampleId]:
        epochs = (divmod(place, self.samples) for place in places)
        return [
            SampleId(self.seed, epoch, int(_permutation(self.samples, self.seed, epoch, -1 - group)[within]))
            for epoch, within in epochs
        ]


@dataclass(frozen=True)
class StepOrder:
    """The order of visits where all samples of a step must be of one group, such as images of one shape.

    Each group has an order of visits of its own, as of `Order`, which goes through all its samples again and again. A
    step takes the next `size` visits of one group. So no sample is left out or repeated: those at the end of a group
    that do not fill a step are visited in the next epoch, with the first of that epoch's order. An epoch has as many
    steps of each group as its samples fill. They come in an order of the epoch's own. With one group this is `Order`.

    groups: the indices of the samples of each. seed: of the run. size: visits in a step.
    """

    groups: tuple[Tensor, ...]
    seed: int
    size: int

    def visits(self, step: int, start: int, count: int) -> list[SampleId]:
        """The visits with the numbers start ... start + count - 1 of a step of the run."""
        group, number = (0, step) if len(self.groups) == 1 else self._step(step)
        indices, first = self.groups[group], number * self.size + start
        visits = Order(len(indices), self.seed)._at(range(first, first + count), group)
        return [replace(visit, index=int(indices[visit.index])) for visit in visits]

    def _step(self, step: int) -> tuple[int, int]:
        """The group of a step, and its number among the steps of that group."""
        samples = sum(len(indices) for indices in self.groups)
        epoch = step * self.size // samples  # a lower bound: an epoch's steps are samples / size at most on average
        while sum(self._until(epoch + 1)) <= step:
            epoch += 1
        begun, ended = self._until(epoch), self._until(epoch + 1)
        place = step - sum(begun)
        item = int(_permutation(sum(ended) - sum(begun), self.seed, epoch, -1 - len(self.groups))[place])
        for group, (first, last) in enumerate(zip(begun, ended, strict=True)):
            if item < last - first:
                return group, first + item
            item -= last - first
        raise AssertionError("the item is one of an epoch's steps")

    def _until(self, epoch: int) -> list[int]:
        """How many steps of each group there are before an epoch."""
        return [epoch * len(indices) // self.size for indices in self.groups]
