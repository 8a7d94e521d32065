"""Numbers of a set of images with the range of error that drawing other images would give them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

GROUPS = 16  # at most; fewer with fewer images


class Estimate(NamedTuple):
    """A number, and what it would be without each group of images."""

    value: float
    without: tuple[float, ...]  # G of them
    least: float = 0.0  # error at least: what one image changes, of a share, whose groups may all be equal by chance

    @property
    def error(self) -> float:
        """Standard error: the jackknife's, sqrt((G - 1) / G sum_g (v_g - mean v)^2) (Quenouille 1956, Tukey 1958).

        An offset common to all groups drops out, as the one that few images give a Fréchet distance.
        """
        values = torch.tensor(self.without, dtype=torch.float64)
        return max(float(((len(values) - 1) * (values - values.mean()).square().mean()).sqrt()), self.least)

    def less(self, other: "Estimate") -> "Estimate":
        """The difference of two numbers of the same prompts and noise; what sways both alike is not in its error."""
        pairs = zip(self.without, other.without, strict=True)
        return Estimate(self.value - other.value, tuple(a - b for a, b in pairs), max(self.least, other.least))


def estimate(of: Callable[[Tensor], float], count: int, groups: int = GROUPS) -> Estimate:
    """What `of` makes of the numbers of all images, (N,), and of those without each group; image i is of group i mod G.

    count: N, at least 2.
    """
    images, G = torch.arange(count), min(groups, count)
    return Estimate(of(images), tuple(of(images[images % G != g]) for g in range(G)))


def share(hits: tuple[bool, ...]) -> Estimate:
    """The share of hits, its error no less than one image's."""
    values = torch.tensor(hits, dtype=torch.float64)
    return estimate(lambda images: float(values[images].mean()), len(hits))._replace(least=1 / len(hits))
