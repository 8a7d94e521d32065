"""Numbers of a set of images with the range of error that drawing other images would give them."""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist, fmean
from typing import NamedTuple

import torch
from torch import Tensor

GROUPS = 16  # at most; fewer with fewer images
CONFIDENCE = 0.95  # of intervals


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

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """The ends of where the number lies with this confidence, by Student's t with G - 1 degrees of freedom."""
        margin = student_t(confidence, len(self.without) - 1) * self.error
        return self.value - margin, self.value + margin

    def less(self, other: "Estimate") -> "Estimate":
        """The difference of two numbers of the same prompts and noise; what sways both alike is not in its error."""
        pairs = zip(self.without, other.without, strict=True)
        return Estimate(self.value - other.value, tuple(a - b for a, b in pairs), max(self.least, other.least))

    def over(self, base: "Estimate") -> "Estimate":
        """The ratio to a base, which is not 0, likewise paired."""
        pairs = zip(self.without, base.without, strict=True)
        return Estimate(self.value / base.value, tuple(a / b for a, b in pairs))

    def relative(self, base: "Estimate") -> "Estimate":
        """The change from a base, which is not 0, as a share of it, likewise paired."""
        ratio = self.over(base)
        return Estimate(ratio.value - 1, tuple(value - 1 for value in ratio.without))

    @property
    def numbers(self) -> dict[str, float]:
        """As data: the number and its error."""
        return {"value": self.value, "error": self.error}


def estimate(of: Callable[[Tensor], float], count: int, groups: int = GROUPS) -> Estimate:
    """What `of` makes of the numbers of all images, (N,), and of those without each group; image i is of group i mod G.

    count: N, at least 2.
    """
    images, G = torch.arange(count), min(groups, count)
    return Estimate(of(images), tuple(of(images[images % G != g]) for g in range(G)))


def grouped(of: Callable[..., float], *groups: Tensor) -> Estimate:
    """What `of` makes of the numbers of all images of each side, and of those without each group.

    groups: of each side, the group of every image, (N,) of 0...G - 1; a group is left out of all sides together.
    """
    whole = [torch.arange(len(side)) for side in groups]
    G = 1 + max(int(side.max()) for side in groups)
    without = (of(*(images[side != g] for images, side in zip(whole, groups, strict=True))) for g in range(G))
    return Estimate(of(*whole), tuple(without))


def prompt_groups(prompts: Tensor, groups: int = GROUPS) -> Tensor:
    """The group of each image, (N,), by the number of its prompt, (N,): prompts are what is sampled, not images."""
    return prompts % min(groups, int(prompts.max()) + 1)


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of numbers of as many images each; their groups of the same number are left out together."""
    return Estimate(
        fmean(one.value for one in estimates), tuple(map(fmean, zip(*(one.without for one in estimates), strict=True)))
    )


def share(hits: tuple[bool, ...]) -> Estimate:
    """The share of hits, its error no less than one image's."""
    values = torch.tensor(hits, dtype=torch.float64)
    return estimate(lambda images: float(values[images].mean()), len(hits))._replace(least=1 / len(hits))


def ratio(hits: Sequence[bool], of_first: Sequence[bool]) -> Estimate | None:
    """The share of hits over that of the first's, image i of both of one prompt and noise; error no less than a hit's.

    None where it cannot be told: of a single image, or when without some group of images the first has no hit.
    """
    these, first = (torch.tensor(part, dtype=torch.float64) for part in (hits, of_first))
    if len(first) < 2 or min(estimate(lambda images: float(first[images].sum()), len(first)).without) == 0:
        return None
    found = estimate(lambda images: float(these[images].sum() / first[images].sum()), len(first))
    return found._replace(least=1 / float(first.sum()))


def student_t(confidence: float, freedom: int) -> float:
    """The two-sided quantile of Student's t: P(|t| < it) = confidence; exact for 1 and 2 degrees of freedom.

    Above 2, the expansion round the normal quantile (Abramowitz and Stegun 26.7.5), within 1% at 95%.
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
