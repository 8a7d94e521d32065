"""Errors of numbers of images: what drawing other images would show."""

import pytest
import torch

from fewstep.metrics.estimate import estimate, grouped, prompt_groups, ratio, share
from fewstep.metrics.frechet import distance_to, frechet_distance, statistics


def normal(count: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_of_a_mean_it_is_the_standard_error():
    values = normal(64, 1, 0)[:, 0]
    found = estimate(lambda images: float(values[images].mean()), 64, groups=64)
    assert found.value == pytest.approx(float(values.mean()))
    assert found.error == pytest.approx(float(values.std()) / 8)


def test_of_a_share_it_is_near_the_binomials():
    hits = tuple(bool(x) for x in (normal(400, 1, 1)[:, 0] > 0.5))
    found = share(hits)
    assert found.value == sum(hits) / 400
    assert found.error == pytest.approx((found.value * (1 - found.value) / 400) ** 0.5, rel=0.5)
    none = share((False,) * 32)
    assert (none.value, none.error, none.less(none).error) == (0, 1 / 32, 1 / 32)  # nothing seen is not certainty


def test_of_a_frechet_distance_of_few_images_it_is_how_far_other_images_spread():
    dim, count = 24, 16  # fewer images than features
    target = statistics([normal(2000, dim, 0)], "x")
    drawn = [normal(count, dim, seed) * 1.2 + 0.5 for seed in range(1, 41)]
    found = [estimate(lambda i, x=x: distance_to(x[i], target), count) for x in drawn]
    spread = float(torch.tensor([one.value for one in found]).std())
    told = sum(one.error for one in found) / len(found)
    assert 0.6 < told / spread < 1.7


def test_a_difference_leaves_out_what_sways_both():
    values = normal(64, 1, 2)[:, 0] * 10
    a, b = (estimate(lambda i, d=d: float((values + d * (1 + 0.01 * values))[i].mean()), 64) for d in (0.0, 1.0))
    assert b.less(a).value == pytest.approx(b.value - a.value)
    assert b.less(a).error < 0.02 * a.error


@pytest.mark.parametrize("count", [2, 8, 40])
def test_the_quick_distance_is_the_distance(count):
    features, target = normal(count, 20, 3) + 1, statistics([normal(50, 20, 4)], "x")
    slow = frechet_distance(statistics([features], "x"), target, allow_few=True)
    assert distance_to(features, target) == pytest.approx(slow, rel=1e-6)


def test_an_interval_is_of_students_t():
    values = normal(32, 1, 0)[:, 0]
    found = estimate(lambda images: float(values[images].mean()), 32)
    low, high = found.interval()
    assert (low + high) / 2 == pytest.approx(found.value)
    assert (high - low) / 2 == pytest.approx(2.1314 * found.error, rel=0.01)  # of 15 degrees of freedom


def test_the_ratio_of_shares_covers_the_true_one():
    random, covered = torch.Generator().manual_seed(0), 0
    for _ in range(100):
        sway = torch.rand(320, generator=random)  # how easy each prompt is
        first = torch.rand(320, generator=random) < sway
        row = torch.rand(320, generator=random) < 0.8 * sway
        found = ratio(row.tolist(), first.tolist())
        assert found.value == pytest.approx(float(row.sum() / first.sum()))
        low, high = found.interval()
        covered += low <= 0.8 <= high
    assert covered >= 88


def test_the_ratio_of_equal_shares_is_1_within_one_image():
    hits = [True, False] * 20
    found = ratio(hits, hits)
    assert (found.value, found.error) == (1, 1 / 20)


@pytest.mark.parametrize("of_first", [[False] * 8, [True] + [False] * 7, [True]])
def test_a_ratio_that_cannot_be_told_is_none(of_first):
    assert ratio([True] * len(of_first), of_first) is None


def test_groups_of_prompts_are_left_out_of_both_sides():
    of, other = normal(40, 1, 0)[:, 0], normal(60, 1, 1)[:, 0]
    prompts, others = torch.arange(40) % 20, torch.arange(60) % 20
    found = grouped(
        lambda i, j: float(of[i].mean() - other[j].mean()), prompt_groups(prompts, 5), prompt_groups(others, 5)
    )
    assert found.value == pytest.approx(float(of.mean() - other.mean()))
    assert found.without[2] == pytest.approx(float(of[prompts % 5 != 2].mean() - other[others % 5 != 2].mean()))
    assert len(found.without) == 5


def test_pictures_of_one_prompt_are_no_more_than_one():
    random, told = torch.Generator().manual_seed(0), []
    for _ in range(200):
        prompts = torch.arange(256) % 64
        values = torch.randn(64, generator=random)[prompts]  # the prompt decides the number
        by_prompt = grouped(lambda i, v=values: float(v[i].mean()), prompt_groups(prompts))
        told.append((by_prompt.value, by_prompt.error))
    spread = float(torch.tensor([value for value, _ in told]).std())
    assert sum(error for _, error in told) / 200 == pytest.approx(spread, rel=0.15)
