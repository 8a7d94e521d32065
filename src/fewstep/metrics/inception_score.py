"""Inception score: are images of one class each, and of all classes together."""

from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.errors import FewstepError

TOLERANCE = 1e-3  # of the sum of a row of probabilities


class InceptionScore(NamedTuple):
    """1 at worst, the number of classes at best; mean and standard deviation over the splits."""

    mean: float
    std: float  # 0 with one split


def inception_score(probabilities: Tensor, splits: int = 10) -> InceptionScore:
    """exp(E KL(p(y|x) || p(y))) (Salimans et al. 2016, arXiv 1606.03498, section 4), over splits in order.

    probabilities: (N, K) of a classifier's K classes. Scores of different classifiers do not compare: only
    Inception-v3's is *the* Inception score.
    """
    if not 1 <= splits <= len(probabilities):
        raise FewstepError(f"{len(probabilities)} images do not make {splits} splits", "use fewer splits")
    exact = probabilities.detach().to("cpu", torch.float64)
    if not ((exact >= 0).all() and ((exact.sum(dim=1) - 1).abs() < TOLERANCE).all()):
        raise FewstepError("class probabilities do not add up to 1", "give probabilities, not logits")
    scores = torch.stack([torch.exp(divergence(part)) for part in exact.tensor_split(splits)])
    return InceptionScore(float(scores.mean()), float(scores.std(correction=0)))


def divergence(p: Tensor) -> Tensor:
    """Mean over the images of KL(p(y|x) || p(y)), with p(y) their mean; p: (N, K)."""
    return (torch.xlogy(p, p) - torch.xlogy(p, p.mean(dim=0))).sum(dim=1).mean()
