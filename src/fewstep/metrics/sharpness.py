"""Sharpness: the amount of fine detail in a picture."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.metrics.estimate import Estimate, grouped

LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


def sharpness(batches: Iterable[Tensor]) -> Tensor:
    """The variance of each picture's Laplacian, (N,) float64 (Pech-Pacheco et al. 2000). A blur lowers it.

    batches: pixels (B, 3, H, W) in [-1, 1]. The Laplacian is that of the mean over the colours.
    """
    kernel = torch.tensor(LAPLACIAN).view(1, 1, 3, 3)
    return torch.cat([F.conv2d(x.mean(1, keepdim=True), kernel).var((1, 2, 3)) for x in batches]).double()


def sharpness_ratio(of: Tensor, base: Tensor, groups: tuple[Tensor, Tensor]) -> Estimate:
    """The mean sharpness of pictures `of` (N,) divided by that of a base (M,), with its error over groups of prompts.

    groups: the group of each picture, (N,) and (M,), from `prompt_groups`.
    """
    return grouped(lambda x, y: float(of[x].mean() / base[y].mean()), *groups)
