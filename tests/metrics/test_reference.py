"""The reference stands in for the drawings: exactly at full size, ever better with more, the same from its file."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from fewstep.errors import FewstepError
from fewstep.metrics.agreement import Pictures, agreement, ceiling, whitened
from fewstep.metrics.frechet import frechet_distance, statistics
from fewstep.metrics.networks import EfficientNet
from fewstep.metrics.reference import (
    agreement_with,
    ceiling_with,
    compress,
    load_reference,
    low_rank,
    save_reference,
)

STYLES = ("flat", "blob", "line")
CONCEPTS = tuple(f"concept {i}" for i in range(40))
DIM = 32
LABEL = EfficientNet.label


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def drawn(noise: float, seed: int) -> Pictures:
    """Every concept in every style: concepts and styles as directions, features of different scales, noise."""
    concept, style = normal(len(CONCEPTS), DIM, seed=100), normal(len(STYLES), DIM, seed=101)
    pairs = [(s, c) for s in range(len(STYLES)) for c in range(len(CONCEPTS))]
    features = torch.stack([concept[c] + style[s] for s, c in pairs]) + noise * normal(len(pairs), DIM, seed=seed)
    return Pictures(
        features * torch.logspace(0, -1, DIM) + 1, [STYLES[s] for s, _ in pairs], [CONCEPTS[c] for _, c in pairs]
    )


def spread(count: int, seed: int, dim: int = DIM) -> torch.Tensor:
    """Correlated features (count, dim) whose variances fall by four decades."""
    mixing = normal(dim, dim, seed=7) * torch.logspace(0, -2, dim)
    return normal(count, dim, seed=seed) @ mixing.T


def test_codes_are_within_half_a_step_of_the_whitened_vectors():
    drawings = drawn(0.5, seed=1)
    reference = compress(drawings, DIM, LABEL)
    exact, whole = reference.view(drawings.features), whitened(drawings.features)(drawings.features)
    assert reference.codes.dtype == torch.int8
    assert ((reference.drawings.features - exact).abs() <= 0.5001 * reference.scales).all()
    torch.testing.assert_close(exact, whole, rtol=0, atol=3e-3)  # axes in half precision


@pytest.mark.parametrize("noise", [0.3, 0.8])
@pytest.mark.parametrize("families", [None, {"flat": "solid", "blob": "solid"}])
def test_at_full_size_agreement_is_that_of_the_drawings(noise, families):
    images, drawings = drawn(noise, seed=1), drawn(noise, seed=2)
    reference = compress(drawings, DIM, LABEL)
    assert agreement_with(images, reference, families) == agreement(images, drawings, families=families)
    assert ceiling_with(images, reference, families) == ceiling(images, drawings, families=families)


def test_fewer_dimensions_judge_more_images_differently():
    images, drawings = drawn(0.5, seed=1), drawn(0.5, seed=2)
    whole = agreement(images, drawings).hits
    differing = [
        sum(a != b for a, b in zip(whole, agreement_with(images, compress(drawings, dims, LABEL)).hits, strict=True))
        for dims in (2, 16, 28)
    ]
    assert differing == sorted(differing, reverse=True)
    assert differing[0] > 20 > 5 > differing[-1]


def test_the_axes_kept_are_those_drawings_differ_along():
    drawings = drawn(0.5, seed=1)
    view, whole = compress(drawings, 4, LABEL).view, whitened(drawings.features, shrinkage=0.0)
    assert view.axes is not None
    directions = F.normalize(view.axes, dim=0)
    variances = ((drawings.features - whole.centre) @ directions).var(dim=0)
    torch.testing.assert_close(variances, torch.linalg.eigvalsh(drawings.features.T.cov())[-4:], rtol=1e-2, atol=0)


def test_features_of_any_scale_are_compressed_alike():
    images, drawings = drawn(0.5, seed=1), drawn(0.5, seed=2)
    small = [pictures._replace(features=pictures.features * 1e-6) for pictures in (images, drawings)]
    assert agreement_with(small[0], compress(small[1], 16, LABEL)) == agreement_with(
        images, compress(drawings, 16, LABEL)
    )


def test_low_rank_at_full_rank_is_exact():
    values = statistics([spread(100, 0)], LABEL)
    again = low_rank(values, DIM).expanded()
    assert (again.count, again.features) == (100, LABEL)
    assert torch.equal(again.mean, values.mean)
    torch.testing.assert_close(again.scatter, values.scatter, rtol=1e-9, atol=1e-9)
    assert frechet_distance(values, again) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("rank", [0, 3, DIM])
def test_every_features_variance_stays_exact(rank):
    values = statistics([spread(20, 0)], LABEL)
    torch.testing.assert_close(low_rank(values, rank).expanded().covariance.diag(), values.covariance.diag())


def test_frechet_error_falls_with_rank():
    values = statistics([spread(500, 0)], LABEL)
    errors = [frechet_distance(values, low_rank(values, rank).expanded()) for rank in (0, 4, 8, 16, 24)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02 * errors[0]


def test_the_distance_to_other_images_is_nearly_kept():
    values, other = statistics([spread(500, 0)], LABEL), statistics([0.8 * spread(500, 1) + 0.3], LABEL)
    kept = frechet_distance(other, low_rank(values, 16).expanded())
    assert kept == pytest.approx(frechet_distance(other, values), rel=0.05)


def test_statistics_are_of_each_style():
    drawings = drawn(0.5, seed=1)
    reference = compress(drawings, 8, LABEL, rank=5)
    assert list(reference.statistics) == list(STYLES)
    blob = reference.statistics["blob"]
    assert (blob.count, blob.factor.shape) == (40, (DIM, 5))
    torch.testing.assert_close(blob.mean.float(), drawings.features[40:80].mean(dim=0))


def test_a_file_brings_back_the_same(tmp_path):
    images, drawings = drawn(0.5, seed=1), drawn(0.5, seed=2)
    reference = compress(drawings, 16, LABEL)
    save_reference(tmp_path / "kit" / "reference.safetensors", reference)
    again = load_reference(tmp_path / "kit" / "reference.safetensors")
    assert (again.styles, again.concepts, again.features) == (reference.styles, reference.concepts, LABEL)
    assert torch.equal(again.codes, reference.codes)
    assert agreement_with(images, again) == agreement_with(images, reference)
    assert ceiling_with(images, again) == ceiling_with(images, reference)
    for style, values in reference.statistics.items():
        read = again.statistics[style]
        assert read.count == values.count
        for name in ("mean", "factor", "rest"):
            torch.testing.assert_close(getattr(read, name), getattr(values, name).float(), rtol=1e-3, atol=1e-6)


def test_the_file_is_small(tmp_path):
    drawings = Pictures(normal(2000, 128, seed=0), ["flat"] * 2000, [f"concept {i}" for i in range(2000)])
    save_reference(tmp_path / "reference.safetensors", compress(drawings, 64, LABEL))
    names = 20 * 2000
    assert (tmp_path / "reference.safetensors").stat().st_size < 2000 * (64 + 4) + 2 * 128 * (64 + 26 + 2) + names


def test_features_of_another_network_are_refused(tmp_path):
    path, drawings = tmp_path / "reference.safetensors", drawn(0.5, seed=1)
    save_reference(path, compress(drawings, 8, "another network"))
    assert load_reference(path, "another network").features == "another network"
    with pytest.raises(FewstepError, match="has features of 'another network', not of 'efficientnet-lite0"):
        load_reference(path)
    narrow = drawings._replace(features=drawings.features[:, :20])
    with pytest.raises(FewstepError, match=r"20 features each, but the reference has 32\n\nhint: .*: another network"):
        agreement_with(narrow, load_reference(path, "another network"))


def test_missing_other_and_damaged_files_are_refused(tmp_path):
    path, other = tmp_path / "reference.safetensors", tmp_path / "other.safetensors"
    save_reference(path, compress(drawn(0.5, seed=1), 8, LABEL))
    save_file({"codes": torch.zeros(3)}, other)
    with pytest.raises(FewstepError, match="reference of drawings not found"):
        load_reference(tmp_path / "missing.safetensors")
    with pytest.raises(FewstepError, match="not a reference of drawings"):
        load_reference(other)
    tensors, metadata = load_file(path), {"format": "fewstep-reference-1", "features": LABEL}
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(FewstepError, match=r"unreadable reference of drawings: .*\n\nhint: the file is damaged"):
        load_reference(path)
    damages = {
        "axes": None,
        "names": torch.zeros(5, dtype=torch.uint8),
        "styles": tensors["styles"] + 3,
        "counts": tensors["counts"][:2],
        "codes": tensors["codes"][1:],
        "scales": tensors["scales"][1:],
        "centre": tensors["centre"][1:],
    }
    for name, damage in damages.items():
        kept = {key: value for key, value in (tensors | {name: damage}).items() if value is not None}
        save_file(kept, path, metadata)
        with pytest.raises(FewstepError, match="unreadable reference of drawings"):
            load_reference(path)


def test_sizes_that_do_not_exist_are_refused():
    drawings = drawn(0.5, seed=1)
    for dims in (0, DIM + 1):
        with pytest.raises(FewstepError, match=rf"32 features cannot be seen in {dims} dimensions"):
            compress(drawings, dims, LABEL)
    with pytest.raises(FewstepError, match="no part of rank 33"):
        compress(drawings, 8, LABEL, rank=33)
    with pytest.raises(FewstepError, match="120 images, 120 styles and 119 concepts"):
        compress(drawings._replace(concepts=drawings.concepts[1:]), 8, LABEL)
