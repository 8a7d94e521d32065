"""Sharpness: how much fine detail a picture has."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.metrics.estimate import Estimate, grouped

LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


def sharpness(batches: Iterable[Tensor]) -> Tensor:
    """Variance of each picture's Laplacian, (N,) float64 (Pech-Pacheco et al. 2000); a blur lowers it.

    batches: pixels (B, 3, H, W) in [-1, 1], of which the mean over the colours is taken.
    """
    kernel = torch.tensor(LAPLACIAN).view(1, 1, 3, 3)
    return torch.cat([F.conv2d(x.mean(1, keepdim=True), kernel).var((1, 2, 3)) for x in batches]).double()


def sharpness_ratio(of: Tensor, base: Tensor, groups: tuple[Tensor, Tensor]) -> Estimate:
    """The mean of sharpnesses (N,) over the mean of a base's (M,), both without each group of prompts in turn.

    groups: the group of each picture, (N,) and (M,), as `prompt_groups` makes them.
    """
    return grouped(lambda x, y: float(of[x].mean() / base[y].mean()), *groups)
