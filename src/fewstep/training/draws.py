"""The random numbers of training, which depend only on (seed, epoch, sample index).

So a resumed run and a run on several processes draw the same numbers as one uninterrupted process.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class SampleId:
    """One visit of one sample."""

    seed: int
    epoch: int
    index: int  # of the sample in the data set; -1 = the epoch itself


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
def _permutation(samples: int, seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(torch.randperm(samples, generator=generator(SampleId(seed, epoch, -1))).tolist())


@dataclass(frozen=True)
class Order:
    """The order of visits. Each epoch visits every sample once, in an order of its own.

    samples: size of the data set. seed: of the run.
    """

    samples: int
    seed: int

    def visits(self, start: int, count: int) -> list[SampleId]:
        """The visits with the numbers start ... start + count - 1 of the run."""
        places = (divmod(place, self.samples) for place in range(start, start + count))
        return [
            SampleId(self.seed, epoch, _permutation(self.samples, self.seed, epoch)[within]) for epoch, within in places
        ]
