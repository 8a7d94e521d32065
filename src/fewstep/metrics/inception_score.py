"""Inception score: high if each image is clearly of one class, and all images together have many classes."""

from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.errors import FewstepError

TOLERANCE = 1e-3  # allowed deviation from 1 of the sum of a row of probabilities


class InceptionScore(NamedTuple):
    """Mean and standard deviation over the splits. The worst score is 1, the best is the number of classes."""

    mean: float
    std: float  # 0 with one split


def inception_score(probabilities: Tensor, splits: int = 10) -> InceptionScore:
    """exp(E KL(p(y|x) || p(y))) (Salimans et al. 2016, arXiv 1606.03498, section 4), over consecutive splits.

    probabilities: (N, K), of a classifier's K classes. Scores of different classifiers cannot be compared; only
    Inception-v3's is *the* Inception score.
    """
    if not 1 <= splits <= len(probabilities):
        raise FewstepError(f"{len(probabilities)} images do not make {splits} splits", "use fewer splits")
    exact = probabilities.detach().to("cpu", torch.float64)
    if not ((exact >= 0).all() and ((exact.sum(dim=1) - 1).abs() < TOLERANCE).all()):
        raise FewstepError("class probabilities do not add up to 1", "pass probabilities, not logits")
    scores = torch.stack([torch.exp(divergence(part)) for part in exact.tensor_split(splits)])
    return InceptionScore(float(scores.mean()), float(scores.std(correction=0)))


def divergence(p: Tensor) -> Tensor:
    """The mean over the images of KL(p(y|x) || p(y)), where p(y) is the mean of p(y|x). p: (N, K)."""
    return (torch.xlogy(p, p) - torch.xlogy(p, p.mean(dim=0))).sum(dim=1).mean()
