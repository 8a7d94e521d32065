"""The Fréchet distance equals the published formula; statistics stream, merge and survive a file."""

import numpy as np
import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.metrics.frechet import (
    Statistics,
    frechet_distance,
    load_statistics,
    merge,
    needed,
    save_statistics,
    statistics,
)

linalg = pytest.importorskip("scipy.linalg", reason="scipy is not installed")


def features(count: int, dim: int, seed: int, shift: float = 0.0, decades: int = 1) -> torch.Tensor:
    """Correlated features (count, dim) float64 whose scales span decades."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64) * torch.logspace(0, -decades, dim).double()
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) @ mixing.T + shift


def of(batch: torch.Tensor) -> Statistics:
    return statistics([batch], "test")


def published(a: Statistics, b: Statistics) -> float:
    """Equation 6 with scipy's square root of a matrix."""
    root = linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy())
    traces = (a.covariance + b.covariance).trace().item() - 2 * np.trace(root).real
    return (a.mean - b.mean).square().sum().item() + traces


def by_singular_values(x: torch.Tensor, y: torch.Tensor) -> float:
    """Equation 6 again: the trace of the root is the nuclear norm of the product of the centred features."""
    a, b = of(x), of(y)
    product = (x - x.mean(dim=0)) @ (y - y.mean(dim=0)).T / ((len(x) - 1) * (len(y) - 1)) ** 0.5
    traces = (a.covariance + b.covariance).trace() - 2 * torch.linalg.svdvals(product).sum()
    return float((a.mean - b.mean).square().sum() + traces)


@pytest.mark.parametrize("dim", [1, 2, 7, 32])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_formula_with_the_root_of_a_matrix(dim, seed):
    a, b = of(features(200, dim, seed)), of(features(150, dim, seed + 10, shift=0.1))
    assert frechet_distance(a, b) == pytest.approx(published(a, b), rel=1e-9, abs=1e-9)


def test_of_gaussians_in_one_dimension_is_the_closed_form():
    a = Statistics(11, torch.tensor([1.0]).double(), torch.tensor([[90.0]]).double(), "test")  # variance 9
    b = Statistics(21, torch.tensor([3.0]).double(), torch.tensor([[80.0]]).double(), "test")  # variance 4
    assert frechet_distance(a, b) == pytest.approx((1 - 3) ** 2 + (3 - 2) ** 2, abs=1e-12)


@pytest.mark.parametrize("count", [20, 33, 200])
def test_is_zero_for_a_set_with_itself_and_symmetric(count):
    a, b = of(features(count, 32, 0)), of(features(count + 5, 32, 1))
    assert frechet_distance(a, a, allow_few=True) == pytest.approx(0, abs=1e-7 * a.covariance.trace().item())
    there, back = (frechet_distance(*pair, allow_few=True) for pair in ((a, b), (b, a)))
    assert there == pytest.approx(back, rel=1e-12)
    assert there > 0


def test_of_halves_of_one_set_falls_with_their_size():
    whole, other = features(6400, 32, 0), of(features(6400, 32, 1))
    halves = [frechet_distance(of(whole[:n]), of(whole[n : 2 * n])) for n in (100, 400, 1600, 3200)]
    assert halves == sorted(halves, reverse=True)
    assert halves[-1] < 0.01 * frechet_distance(of(whole), other)


@pytest.mark.parametrize(("n", "m"), [(6, 9), (9, 6), (40, 60), (300, 400)])
def test_is_right_where_covariances_are_singular_or_nearly(n, m):
    x, y = features(n, 32, 0, decades=6), features(m, 32, 1, shift=0.1, decades=6)
    scale = of(x).covariance.trace().item()
    distance = frechet_distance(of(x), of(y), allow_few=True)
    assert distance == pytest.approx(by_singular_values(x, y), abs=1e-8 * scale)


def test_constant_features_have_only_the_distance_of_means():
    a, b = of(torch.zeros(5, 3)), of(torch.ones(5, 3))
    assert frechet_distance(a, b) == 3


def test_too_few_images_are_refused_with_the_number_needed():
    a, b = of(features(40, 32, 0)), of(features(32, 32, 1))
    assert needed(32) == 33
    with pytest.raises(FewstepError, match="32 images are too few for a Fréchet distance over 32 features") as caught:
        frechet_distance(a, b)
    assert "at least 33" in caught.value.hint
    assert frechet_distance(a, b, allow_few=True) > 0


def test_mean_and_covariance_are_numpys():
    x = features(50, 8, 0)
    a = of(x)
    assert a.count == 50
    assert a.mean.dtype == a.scatter.dtype == torch.float64
    np.testing.assert_allclose(a.mean, x.numpy().mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(a.covariance, np.cov(x.numpy(), rowvar=False), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_streaming_equals_the_whole(shift):
    x = features(100, 16, 0, shift)
    whole, streamed = of(x), statistics(iter(x.split(7)), "test")
    assert streamed.count == whole.count == 100
    torch.testing.assert_close(streamed.mean, whole.mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(streamed.scatter, whole.scatter, rtol=1e-9, atol=1e-9)


def test_merged_parts_equal_the_whole_in_either_order():
    x = features(100, 16, 0)
    whole, first, second = of(x), of(x[:30]), of(x[30:])
    for merged in (merge(first, second), merge(second, first)):
        assert merged.count == 100
        torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(merged.scatter, whole.scatter, rtol=1e-10, atol=1e-12)


def test_a_single_image_has_no_covariance_but_counts():
    x = features(3, 4, 0)
    assert torch.equal(of(x[:1]).covariance, torch.zeros(4, 4).double())
    torch.testing.assert_close(statistics(x.split(1), "test").scatter, of(x).scatter)


def test_different_features_are_not_compared_or_merged():
    a = statistics([features(40, 4, 0)], "one network")
    b = statistics([features(40, 4, 0)], "another")
    for refused in (frechet_distance, merge):
        with pytest.raises(FewstepError, match=r"different features: 'one network' \(4\) and 'another' \(4\)"):
            refused(a, b)
    with pytest.raises(FewstepError, match="different features"):
        frechet_distance(of(features(40, 4, 0)), of(features(40, 5, 0)))


def test_no_images_and_broken_features_are_refused():
    with pytest.raises(FewstepError, match="no images"):
        statistics([], "test")
    x = features(5, 3, 0)
    x[1, 2] = torch.nan
    with pytest.raises(FewstepError, match="1 of 5 images have features that are not finite"):
        of(x)


def test_a_file_brings_back_the_same(tmp_path):
    a = statistics([features(40, 4, 0)], "network, filter")
    save_statistics(tmp_path / "reference.safetensors", a)
    b = load_statistics(tmp_path / "reference.safetensors")
    assert (b.count, b.features) == (40, "network, filter")
    assert torch.equal(a.mean, b.mean)
    assert torch.equal(a.scatter, b.scatter)


def test_other_files_are_refused(tmp_path):
    from safetensors.torch import save_file

    missing, broken, other = (tmp_path / f"{name}.safetensors" for name in ("missing", "broken", "other"))
    broken.write_bytes(b"not safetensors")
    save_file({"mean": torch.zeros(3)}, other)
    with pytest.raises(FewstepError, match="feature statistics not found"):
        load_statistics(missing)
    with pytest.raises(FewstepError, match="unreadable feature statistics"):
        load_statistics(broken)
    with pytest.raises(FewstepError, match="not a file of feature statistics"):
        load_statistics(other)
