"""Numbers measured on a set of images, with the error that other images of the same kind would give."""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

GROUPS = 16  # largest number of groups; few images have fewer groups
CONFIDENCE = 0.95  # confidence of intervals


class Estimate(NamedTuple):
    """A number, and its values without each group of images."""

    value: float
    without: tuple[float, ...]  # G values, one without each group
    least: float = 0.0  # lower limit of the error; of a share: one image, since all groups may be equal by chance

    @property
    def error(self) -> float:
        """Standard error: the jackknife's, sqrt((G - 1) / G sum_g (v_g - mean v)^2) (Quenouille 1956, Tukey 1958).

        An offset that all groups have in common cancels, such as that of a Fréchet distance of few images.
        """
        values = torch.tensor(self.without, dtype=torch.float64)
        return max(float(((len(values) - 1) * (values - values.mean()).square().mean()).sqrt()), self.least)

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """The ends of the confidence interval, by Student's t with G - 1 degrees of freedom."""
        margin = student_t(confidence, len(self.without) - 1) * self.error
        return self.value - margin, self.value + margin

    def less(self, other: "Estimate") -> "Estimate":
        """The difference of two numbers for the same prompts and noise. Its error leaves out common variation."""
        pairs = zip(self.without, other.without, strict=True)
        return Estimate(self.value - other.value, tuple(a - b for a, b in pairs), max(self.least, other.least))

    def over(self, base: "Estimate") -> "Estimate":
        """The ratio to a base that is not 0, with a paired error as in `less`."""
        pairs = zip(self.without, base.without, strict=True)
        return Estimate(self.value / base.value, tuple(a / b for a, b in pairs))

    def relative(self, base: "Estimate") -> "Estimate":
        """The relative change from a base that is not 0, with a paired error as in `less`."""
        ratio = self.over(base)
        return Estimate(ratio.value - 1, tuple(value - 1 for value in ratio.without))

    @property
    def numbers(self) -> dict[str, float]:
        """The number and its error, as data."""
        return {"value": self.value, "error": self.error}


def estimate(of: Callable[[Tensor], float], count: int, groups: int = GROUPS) -> Estimate:
    """The estimate of a function `of` the images' indices (N,): its value for all, and without each group.

    Image i is in group i mod G. count: N, at least 2.
    """
    images, G = torch.arange(count), min(groups, count)
    return Estimate(of(images), tuple(of(images[images % G != g]) for g in range(G)))


def grouped(of: Callable[..., float], *groups: Tensor) -> Estimate:
    """The estimate of a function `of` the indices of each side's images: its value for all, and without each group.

    groups: for each side, the group of every image, (N,) in 0...G - 1. A group is left out of all sides together.
    """
    whole = [torch.arange(len(side)) for side in groups]
    G = 1 + max(int(side.max()) for side in groups)
    without = (of(*(images[side != g] for images, side in zip(whole, groups, strict=True))) for g in range(G))
    return Estimate(of(*whole), tuple(without))


def prompt_groups(prompts: Tensor, groups: int = GROUPS) -> Tensor:
    """The group of each image, (N,), by the number of its prompt, (N,). Prompts are the random sample, not images."""
    return prompts % min(groups, int(prompts.max()) + 1)


def share(hits: tuple[bool, ...]) -> Estimate:
    """The share of hits. Its error is at least that of one image."""
    values = torch.tensor(hits, dtype=torch.float64)
    return estimate(lambda images: float(values[images].mean()), len(hits))._replace(least=1 / len(hits))


def ratio(hits: Sequence[bool], of_first: Sequence[bool], groups: Tensor | None = None) -> Estimate | None:
    """The share of hits divided by that of `of_first`, paired by image. Its error is at least that of one hit.

    Image i of both has the same prompt and noise. groups: the group of each image, (N,); None: i mod G. None if there
    is no ratio: for a single image, or if `of_first` has no hit without some group of images.
    """
    these, first = (torch.tensor(part, dtype=torch.float64) for part in (hits, of_first))
    own = torch.arange(len(first)) % GROUPS if groups is None else groups
    if len(first) < 2 or min(grouped(lambda images: float(first[images].sum()), own).without) == 0:
        return None
    found = grouped(lambda images: float(these[images].sum() / first[images].sum()), own)
    return found._replace(least=1 / float(first.sum()))


def student_t(confidence: float, freedom: int) -> float:
    """The two-sided quantile q of Student's t: P(|t| < q) = confidence. It is exact for 1 and 2 degrees of freedom.

    Above 2 it is the expansion around the normal quantile (Abramowitz and Stegun 26.7.5), within 1 % at 95 %.
    """
    p = (1 + confidence) / 2
    if freedom == 1:
        return math.tan(math.pi * (p - 0.5))
    if freedom == 2:
        return (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    z, n = NormalDist().inv_cdf(p), freedom
    terms = (
        z,
        (z**3 + z) / (4 * n),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3),
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * n**4),
    )
    return math.fsum(terms)
