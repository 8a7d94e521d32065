"""KID is unbiased, equals its definition, and its interval holds as often as it says."""

import math

import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.metrics import kid as module
from fewstep.metrics.estimate import student_t
from fewstep.metrics.kid import kid, polynomial_mmd


def features(count: int, seed: int, shift: float = 0.0, dim: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) + shift


def by_definition(x: torch.Tensor, y: torch.Tensor) -> float:
    """The sums over pairs of different images, one pair at a time."""

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    def within(z: torch.Tensor) -> float:
        return sum(kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j) / (len(z) * (len(z) - 1))

    return within(x) + within(y) - 2 * sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))


@pytest.mark.parametrize("chunk", [3, 2048])
@pytest.mark.parametrize(("n", "m"), [(2, 2), (9, 13)])
def test_equals_the_definition(monkeypatch, n, m, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    x, y = features(n, 0), features(m, 1, shift=0.3)
    assert polynomial_mmd(x, y) == pytest.approx(by_definition(x, y), rel=1e-12)
    assert polynomial_mmd(x, y) == pytest.approx(polynomial_mmd(y, x), rel=1e-12)


@pytest.mark.parametrize("count", [4, 40])
def test_is_unbiased_at_any_count(count):
    values = torch.tensor([polynomial_mmd(features(count, 2 * i), features(count, 2 * i + 1)) for i in range(400)])
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(len(values))
    assert (values < 0).any()  # an estimate that cannot be negative is biased


def test_known_distance_lies_in_the_interval_as_often_as_it_says():
    true = polynomial_mmd(features(4000, 10_000), features(4000, 10_001, shift=0.4))
    hits = 0
    for i in range(200):
        result = kid(features(100, 2 * i), features(100, 2 * i + 1, shift=0.4), blocks=5)
        hits += result.low <= true <= result.high
    assert 0.89 <= hits / 200 <= 0.99


def test_grows_with_the_difference_and_is_seeded():
    x = features(200, 0)
    values = [kid(x, features(200, 1, shift)).value for shift in (0.0, 0.3, 0.6)]
    assert values == sorted(values)
    y = features(150, 1, 0.3)
    assert kid(x, y) == kid(x, y)
    assert kid(x, y) != kid(x, y, seed=1)
    assert kid(x, y, blocks=8)[3:5] == (8, 18)


def test_the_interval_of_a_difference_leaves_out_what_both_share():
    real, common, hits = features(200, 0), features(200, 1), 0
    first, row = (kid(common + 0.1 * features(200, 2 + i, shift), real) for i, shift in enumerate((2.0, 4.0)))
    paired = row.less(first)
    assert paired.value == pytest.approx(row.value - first.value)
    unpaired = math.hypot(row.high - row.value, first.high - first.value)
    assert paired.high - paired.value == pytest.approx(paired.value - paired.low)
    assert 0 < paired.high - paired.value < 0.5 * unpaired
    assert first.less(first)[:3] == (0, 0, 0)
    for i in range(40):  # two rows of one distribution, drawn from the same noise
        generator = 100 + 4 * i
        common, real = features(100, generator), features(100, generator + 1)
        one, other = (kid(common + 0.3 * features(100, generator + 2 + j), real, blocks=5) for j in range(2))
        difference = one.less(other)
        hits += difference.low <= 0 <= difference.high
    assert hits >= 34


def test_too_few_images_are_refused():
    with pytest.raises(FewstepError, match="at least 2 images on each side, not 1"):
        polynomial_mmd(features(1, 0), features(5, 1))
    with pytest.raises(FewstepError, match="15 images do not make 10 blocks"):
        kid(features(15, 0), features(100, 1))
    with pytest.raises(FewstepError, match="do not make 1 blocks"):
        kid(features(15, 0), features(100, 1), blocks=1)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 99])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_student_t_is_scipys(freedom, confidence):
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    assert student_t(confidence, freedom) == pytest.approx(stats.t.ppf((1 + confidence) / 2, freedom), rel=0.01)
