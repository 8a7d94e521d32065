"""Sharpness falls under a blur, and its ratio is told with its error."""

import pytest
import torch
from torch.nn.functional import avg_pool2d

from fewstep.metrics.sharpness import sharpness, sharpness_ratio


def pictures(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 3, 24, 24, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_falls_under_a_blur():
    x = pictures(5, 0)
    sharp, soft = sharpness([x[:3], x[3:]]), sharpness([avg_pool2d(x, 3, 1, 1)])
    assert sharp.shape == (5,)
    assert (soft < 0.1 * sharp).all()
    assert sharpness([torch.ones(2, 3, 8, 8)]).tolist() == [0, 0]


def test_of_a_checkerboard_it_is_known():
    board = (torch.arange(16)[:, None] + torch.arange(16)).remainder(2).float() * 2 - 1
    assert float(sharpness([board.expand(1, 3, 16, 16)])) == pytest.approx(64, rel=0.01)  # the Laplacian is -8 and 8


def test_the_ratio_is_of_the_means_without_the_same_prompts():
    of, base = sharpness([pictures(8, 0)]), sharpness([pictures(16, 1)])
    groups = torch.arange(8) % 4, torch.arange(16) % 4
    found = sharpness_ratio(of, base, groups)
    assert found.value == pytest.approx(float(of.mean() / base.mean()))
    assert found.without[1] == pytest.approx(float(of[groups[0] != 1].mean() / base[groups[1] != 1].mean()))
