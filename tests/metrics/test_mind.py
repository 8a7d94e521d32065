"""MIND is 0 for equal sets, equals its definition, and falls with the number of images."""

import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.metrics.mind import mind, mind_estimate


def features(count: int, seed: int, shift: float = 0.0, dim: int = 6) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) + shift


def by_sorting(x: torch.Tensor, y: torch.Tensor, projections: int) -> float:
    """The definition, a direction at a time, in plain Python."""
    directions = torch.randn(projections, x.shape[1], generator=torch.Generator().manual_seed(0))
    total = 0.0
    for direction in directions:
        u = direction / direction.norm()
        pairs = zip(sorted((x @ u).tolist()), sorted((y @ u).tolist()), strict=True)
        total += sum((a - b) ** 2 for a, b in pairs) / len(x)
    return 3 * x.shape[1] * total / projections


def test_equals_the_definition():
    x, y = features(40, 0), features(40, 1, shift=0.5)
    assert mind(x, y, projections=25) == pytest.approx(by_sorting(x, y, 25), rel=1e-4)
    assert mind(x, y) == mind(x, y)
    assert mind(x, y, seed=1) != mind(x, y)


def test_of_a_set_and_itself_it_is_0_in_any_order():
    x = features(50, 0)
    assert mind(x, x.flip(0)) == pytest.approx(0, abs=1e-8)


def test_of_a_shift_it_is_three_times_its_square():
    x = features(200, 0)
    assert mind(x, x + 0.5) == pytest.approx(3 * 6 * 0.5**2, rel=0.05)  # W_2 is the shift along u; mean u_d^2 = 1 / D


def test_few_images_make_it_too_large():
    few, many = (mind(features(count, 0), features(count, 1)) for count in (30, 3000))
    assert few > 20 * many > 0


def test_its_error_leaves_the_same_prompts_out_of_both_sides():
    x, y, groups = features(64, 0), features(64, 1, shift=0.4), torch.arange(64) % 8
    found = mind_estimate(x, y, groups, projections=50)
    assert found.value == mind(x, y, projections=50)
    assert found.without[3] == pytest.approx(mind(x[groups != 3], y[groups != 3], projections=50))
    assert mind_estimate(x, x, groups).error == pytest.approx(0, abs=1e-8)


def test_unequal_counts_are_refused():
    with pytest.raises(FewstepError, match="equal numbers of images, not 4 and 5"):
        mind(features(4, 0), features(5, 1))
