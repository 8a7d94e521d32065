"""The Fréchet distance between the features of two sets of images. With Inception's features it is the FID."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.io import atomic_path

FORMAT = "fewstep-statistics-1"


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and covariance of the features of a set of images, in float64 on the CPU. Sets can be merged."""

    count: int  # images
    mean: Tensor  # (D,)
    scatter: Tensor  # (D, D)  sum over the images of (f - mean)(f - mean)^T
    features: str  # label: network, resize filter; only equal labels are compared

    @property
    def covariance(self) -> Tensor:
        """Unbiased, (D, D): scatter / (count - 1), as numpy's cov."""
        return self.scatter / max(self.count - 1, 1)

    @cached_property
    def root(self) -> Tensor:
        """R (D, K) with R R^T the covariance, whose rank K is."""
        values, vectors = torch.linalg.eigh(self.covariance)
        kept = values > values[-1] * len(values) * torch.finfo(torch.float64).eps
        root: Tensor = vectors[:, kept] * values[kept].sqrt()
        return root


def statistics(batches: Iterable[Tensor], features: str) -> Statistics:
    """Mean and covariance of the features of all images, which come in batches (B, D).

    features: the label of the network, such as `Inception.label`.
    """
    parts = (batch_statistics(batch, features) for batch in batches if len(batch))
    first = next(parts, None)
    if first is None:
        raise FewstepError("there are no images for statistics", "use at least one image")
    return reduce(merge, parts, first)


def batch_statistics(batch: Tensor, features: str) -> Statistics:
    """Mean and covariance of one batch (B, D)."""
    exact = batch.detach().to("cpu", torch.float64)
    if not exact.isfinite().all():
        broken = int((~exact.isfinite()).any(dim=1).sum())
        raise FewstepError(
            f"{broken} of {len(exact)} images have features that are not finite numbers",
            "the images contain NaN: sample in another dtype, or leave them out",
        )
    mean = exact.mean(dim=0)
    deviation = exact - mean
    return Statistics(len(exact), mean, deviation.T @ deviation, features)


def merge(a: Statistics, b: Statistics) -> Statistics:
    """Statistics of both sets together (Chan, Golub and LeVeque 1979, eq. 2.1, for vectors)."""
    check_same_features(a, b)
    count, step = a.count + b.count, b.mean - a.mean
    between = torch.outer(step, step) * (a.count * b.count / count)
    return Statistics(count, a.mean + step * (b.count / count), a.scatter + b.scatter + between, a.features)


def needed(dim: int) -> int:
    """Images needed for a covariance of full rank in `dim` dimensions: dim + 1, because the mean uses one."""
    return dim + 1


def frechet_distance(a: Statistics, b: Statistics, allow_few: bool = False) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (arXiv 1706.08500, eq. 6), squared feature units.

    allow_few: also compute it from fewer images than `needed`. It is then too large, by an amount that depends on the
    number of images: compare such distances only at equal numbers.
    """
    check_same_features(a, b)
    dim = len(a.mean)
    small, large = (a, b) if a.count <= b.count else (b, a)
    if small.count < needed(dim) and not allow_few:
        raise FewstepError(
            f"{small.count} images are too few for a Fréchet distance over {dim} features",
            f"use at least {needed(dim)} on both sides, use KID, or allow few images for a rough comparison",
        )
    return by_root(small, large)


def distance_to(features: Tensor, target: Statistics) -> float:
    """`frechet_distance` from images with features (N, D) to the target, for any N. It is faster if N < D.

    With X the centred features over sqrt(N - 1), C_a = X^T X, and C_a C_b has the eigenvalues of X C_b X^T, (N, N).
    """
    exact = features.detach().to("cpu", torch.float64)
    mean = exact.mean(dim=0)
    x = (exact - mean) / max(len(exact) - 1, 1) ** 0.5
    root = torch.linalg.eigvalsh(x @ target.covariance @ x.T).clamp(min=0).sqrt().sum()
    traces = x.square().sum() + target.covariance.trace() - 2 * root
    return max(float((mean - target.mean).square().sum() + traces), 0.0)


def by_root(a: Statistics, b: Statistics) -> float:
    """The Fréchet distance by a's root R: (C_a C_b)^(1/2) has the same trace as (R^T C_b R)^(1/2).

    The second matrix is symmetric, so no value becomes complex, as can happen in the root of C_a C_b itself. The
    rounding error is below 1e-8 tr C; that of scipy's sqrtm of the product is about ten times as large.
    """
    shared = torch.linalg.eigvalsh(a.root.T @ b.covariance @ a.root).clamp(min=0).sqrt().sum()
    traces = a.covariance.trace() + b.covariance.trace() - 2 * shared
    return max(float((a.mean - b.mean).square().sum() + traces), 0.0)  # rounding can make it negative


def check_same_features(a: Statistics, b: Statistics) -> None:
    """Raise FewstepError for statistics of different networks, filters or sizes."""
    if a.features != b.features or a.mean.shape != b.mean.shape:
        raise FewstepError(
            f"statistics of different features: {a.features!r} ({len(a.mean)}) and {b.features!r} ({len(b.mean)})",
            "compute both with the same network and the same resize",
        )


def save_statistics(path: Path, values: Statistics) -> None:
    """Write statistics as safetensors: tensors `mean` and `scatter`, metadata `count` and `features`."""
    metadata = {"format": FORMAT, "count": str(values.count), "features": values.features}
    with atomic_path(path) as temporary:
        save_file({"mean": values.mean, "scatter": values.scatter}, temporary, metadata)


def load_statistics(path: Path) -> Statistics:
    """The statistics in a file of `save_statistics`."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise FewstepError(f"not a file of feature statistics: {path}", "compute the statistics again")
            return Statistics(
                int(metadata["count"]), file.get_tensor("mean"), file.get_tensor("scatter"), metadata["features"]
            )
    except FileNotFoundError:
        raise FewstepError(f"feature statistics not found: {path}", "check the path") from None
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise FewstepError(
            f"unreadable feature statistics: {path} ({error})", "delete the file and compute them again"
        ) from error
