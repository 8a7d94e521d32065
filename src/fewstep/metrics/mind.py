"""Monge Inception distance (MIND), the sliced Wasserstein distance of Inception's features."""

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.metrics.estimate import Estimate, grouped

PROJECTIONS = 1000  # as in the paper
SCALE = 3  # as in the paper; SCALE * D brings the distance near FID's size


def mind(x: Tensor, y: Tensor, projections: int = PROJECTIONS, seed: int = 0) -> float:
    """3 D mean_u W_2^2(u.x, u.y) over random unit vectors u (arXiv 2605.06797). x, y: features, both (N, D).

    In one dimension, W_2^2 of two samples of equal size is the mean squared difference of their sorted values. Few
    pictures make it too large: compare only values of equal N. seed: draws the directions.
    """
    return between(projected(x, projections, seed), projected(y, projections, seed), x.shape[1])


def mind_estimate(x: Tensor, y: Tensor, groups: Tensor, projections: int = PROJECTIONS, seed: int = 0) -> Estimate:
    """`mind` with its error, from both sides without each group of prompts. groups: (N,), the same for both sides."""
    of_x, of_y = (projected(side, projections, seed) for side in (x, y))
    return grouped(lambda i, j: between(of_x[:, i], of_y[:, j], x.shape[1]), groups, groups)


def projected(features: Tensor, projections: int, seed: int) -> Tensor:
    """The features (N, D) projected on random unit vectors, (projections, N) float32."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(projections, features.shape[1], generator=generator)
    values: Tensor = (directions / directions.norm(dim=1, keepdim=True)) @ features.detach().to("cpu", torch.float32).T
    return values


def between(x: Tensor, y: Tensor, dim: int) -> float:
    """The distance of two projected samples (projections, N). dim: dimension of the features."""
    if x.shape != y.shape or not x.shape[1]:
        raise FewstepError(
            f"MIND compares equal numbers of images, not {x.shape[1]} and {y.shape[1]}", "use equal numbers"
        )
    return SCALE * dim * float((x.sort(dim=1).values - y.sort(dim=1).values).square().double().mean())
