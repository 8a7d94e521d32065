"""KID is unbiased, equals its definition, and its interval holds as often as it says."""

import math

import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.metrics import kid as module
from fewstep.metrics.estimate import student_t
from fewstep.metrics.kid import kid, kid_of_prompts, polynomial_mmd


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


# --- of the same prompts ------------------------------------------------------------------------------------


def of_prompts(prompts: int, each: int, seed: int, shift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of pictures of prompts that differ much more than pictures of one prompt do, and their prompts."""
    number = torch.arange(prompts * each) % prompts
    return features(prompts, 0)[number] + 0.3 * features(len(number), seed, shift), number


def by_pairs(x, y, of_x, of_y) -> float:
    """The definition, a pair of prompts at a time."""

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(((a @ b.T / a.shape[1] + 1) ** 3).mean())

    P = int(of_x.max()) + 1
    parts = [(x[of_x == p], y[of_y == p]) for p in range(P)]
    h = [
        kernel(a, c) + kernel(b, d) - kernel(a, d) - kernel(b, c)
        for i, (a, b) in enumerate(parts)
        for j, (c, d) in enumerate(parts)
        if i != j
    ]
    return sum(h) / len(h)


@pytest.mark.parametrize("chunk", [3, 2048])
def test_of_prompts_it_equals_the_definition(monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    (x, of_x), (y, of_y) = of_prompts(8, 1, 1, 0.5), of_prompts(8, 2, 2)
    found = kid_of_prompts(x, y, of_x, of_y, groups=4)
    assert found.value == pytest.approx(by_pairs(x, y, of_x, of_y), rel=1e-10)
    keep_x, keep_y = of_x % 4 != 1, of_y % 4 != 1
    renumbered = (side - side.div(4, rounding_mode="floor") - (side % 4 > 1).long() for side in (of_x, of_y))
    of_x, of_y = renumbered
    without = by_pairs(x[keep_x], y[keep_y], of_x[keep_x], of_y[keep_y])
    assert found.without[1] == pytest.approx(without, rel=1e-10)


@pytest.mark.parametrize(("prompts", "each"), [(6, 1), (6, 3), (40, 2)])
def test_of_prompts_it_is_unbiased_where_the_plain_one_is_not(prompts, each):
    pairs = [(of_prompts(prompts, each, 2 * i + 1), of_prompts(prompts, each, 2 * i + 2)) for i in range(300)]
    values = torch.tensor([kid_of_prompts(x, y, of_x, of_y).value for (x, of_x), (y, of_y) in pairs])
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(len(values))
    plain = torch.tensor([polynomial_mmd(x, y) for (x, _), (y, _) in pairs])
    assert plain.mean() < -10 * plain.std() / math.sqrt(len(plain))  # pictures of one prompt are alike


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_of_prompts_its_interval_covers_the_true_one(shift):
    def draw(seed: int, moved: float) -> torch.Tensor:
        prompts = features(96, 100_000 + seed // 2)  # other prompts each time: they are sampled too
        return prompts + 0.3 * features(96, seed, moved)

    number, hits, values = torch.arange(96), 0, []
    found = [kid_of_prompts(draw(2 * i, shift), draw(2 * i + 1, 0), number, number) for i in range(150)]
    true = 0.0 if shift == 0 else sum(one.value for one in found) / len(found)  # unbiased, as shown above
    for one in found:
        low, high = one.interval()
        hits += low <= true <= high
        values.append(one.value)
    assert hits >= 0.9 * len(found)
    told, spread = sum(one.error for one in found) / len(found), float(torch.tensor(values).std())
    assert 0.8 < told / spread < 1.7


def test_of_prompts_a_difference_is_paired():
    (x, number), (y, _) = of_prompts(64, 1, 1, 0.5), of_prompts(64, 1, 2)
    other = x + 0.02 * features(64, 3)
    first, second = (kid_of_prompts(side, y, number, number) for side in (x, other))
    assert second.less(first).error < 0.2 * first.error


def test_of_prompts_on_one_side_or_too_few_it_is_refused():
    x, number = of_prompts(4, 1, 1)
    with pytest.raises(FewstepError, match="at least 4, each on both sides"):
        kid_of_prompts(x, x[:3], number, number[:3])
    with pytest.raises(FewstepError, match="at least 4"):
        kid_of_prompts(x[:3], x[:3], number[:3], number[:3])
