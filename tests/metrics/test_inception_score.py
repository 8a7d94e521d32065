"""The Inception score's two ends, its definition, and what it refuses."""

import math

import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.metrics.inception_score import inception_score


def test_images_of_no_class_score_1():
    assert inception_score(torch.full((20, 5), 0.2), splits=4) == pytest.approx((1, 0), abs=1e-6)


@pytest.mark.parametrize("splits", [1, 4])
def test_sure_and_balanced_images_score_the_number_of_classes(splits):
    assert inception_score(torch.eye(5).repeat(8, 1), splits) == pytest.approx((5, 0), abs=1e-12)


def test_sure_images_of_one_class_score_1():
    assert inception_score(torch.eye(5)[:1].repeat(8, 1), 2) == pytest.approx((1, 0), abs=1e-12)


def test_equals_the_definition():
    p = torch.randn(12, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(dim=1)
    scores = []
    for part in (p[:6], p[6:]):
        marginal = part.mean(dim=0)
        divergences = [sum(a * math.log(a / b) for a, b in zip(row, marginal, strict=True)) for row in part]
        scores.append(math.exp(sum(divergences) / len(divergences)))
    mean = sum(scores) / 2
    std = abs(scores[0] - scores[1]) / 2
    assert inception_score(p, splits=2) == pytest.approx((mean, std), rel=1e-12)


@pytest.mark.parametrize("splits", [0, 4])
def test_splits_are_at_most_the_images(splits):
    with pytest.raises(FewstepError, match=f"3 images do not make {splits} splits"):
        inception_score(torch.eye(3), splits)


def test_logits_are_refused():
    with pytest.raises(FewstepError, match="do not add up to 1"):
        inception_score(torch.randn(10, 5, generator=torch.Generator().manual_seed(0)), 1)
