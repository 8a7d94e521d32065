"""The reference: the data about real drawings that metrics need, without the drawings, small enough to ship."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.io import atomic_path
from fewstep.metrics.agreement import Agreement, Pictures, View, agreement, ceiling, check_labels, numbering, whitened
from fewstep.metrics.frechet import Statistics, statistics
from fewstep.metrics.networks import EfficientNet

FORMAT = "fewstep-reference-1"
REMAKE = "make it again with python -m recipes.emoji.kit"
CODES = 127  # the largest int8 code, of either sign


@dataclass(frozen=True, eq=False)
class LowRankStatistics:
    """Mean and covariance F F^T + diag(rest^2) of the features of a set of images.

    F keeps the R leading directions. The rest is kept as one variance per feature, so that every feature's own variance
    is exact. Pooled ReLU features differ much in variance. For EfficientNet-Lite0's features of drawn shapes at R = 24,
    the Fréchet distance to the exact statistics is 11; it is 23 with the rest spread evenly over the other directions,
    and 28 without the rest.
    """

    count: int  # images
    mean: Tensor  # (D,)
    factor: Tensor  # (D, R)
    rest: Tensor  # (D,)  standard deviations
    features: str  # label of the network

    def expanded(self) -> Statistics:
        """The statistics in full, for `frechet_distance`, in float64."""
        factor = self.factor.double()
        covariance = factor @ factor.T + self.rest.double().square().diag()
        return Statistics(self.count, self.mean.double(), covariance * max(self.count - 1, 1), self.features)


def low_rank(values: Statistics, rank: int) -> LowRankStatistics:
    """The statistics with the `rank` leading directions of their covariance. They are exact at rank D."""
    dim = len(values.mean)
    if not 0 <= rank <= dim:
        raise FewstepError(f"a covariance of {dim} features has no part of rank {rank}", f"choose a rank of 0...{dim}")
    variances, directions = torch.linalg.eigh(values.covariance)
    factor = directions[:, dim - rank :] * variances[dim - rank :].clamp(min=0).sqrt()
    rest = (values.covariance.diag() - factor.square().sum(dim=1)).clamp(min=0).sqrt()
    return LowRankStatistics(values.count, values.mean, factor, rest, values.features)


@dataclass(frozen=True, eq=False)
class Reference:
    """Data about real drawings for agreement and Fréchet distances."""

    codes: Tensor  # (N, K) int8  codes * scales are the drawings' unit vectors in `view`
    scales: Tensor  # (K,) float32
    styles: Sequence[str]  # of each drawing
    concepts: Sequence[str]
    view: View  # from features (D,) to K dimensions
    statistics: Mapping[str, LowRankStatistics]  # style -> statistics of its drawings
    features: str  # label of the network, such as `EfficientNet.label`

    @property
    def drawings(self) -> Pictures:
        """The drawings, mapped by `view`."""
        return Pictures(self.codes * self.scales, self.styles, self.concepts)

    @property
    def seen(self) -> View:
        """The identity, the view for pictures that `view` has mapped already."""
        return View(torch.zeros_like(self.scales), None)

    def look_at(self, images: Pictures) -> Pictures:
        """Images with features (B, D), mapped by `view`."""
        check_labels(images)
        dim, expected = images.features.shape[1], len(self.view.centre)
        if dim != expected:
            raise FewstepError(
                f"the images have {dim} features each, but the reference has {expected}",
                f"compute the images' features with the reference's network: {self.features}",
            )
        return images._replace(features=self.view(images.features.to(self.view.centre.device)))


def compress(drawings: Pictures, dims: int, features: str, rank: int = 24) -> Reference:
    """The reference of drawings: the `dims` leading axes of `whitened`, int8 codes, low-rank statistics per style.

    features: the label of the network of drawings.features (N, D). The axes are rounded to half precision first, so
    that the codes are made with exactly the axes that are saved.
    """
    check_labels(drawings)
    view = leading(whitened(drawings.features), dims)
    vectors = view(drawings.features)
    scales = vectors.abs().amax(dim=0).clamp(min=torch.finfo(vectors.dtype).tiny) / CODES
    return Reference(
        codes=(vectors / scales).round().to(torch.int8),
        scales=scales,
        styles=tuple(drawings.styles),
        concepts=tuple(drawings.concepts),
        view=view,
        statistics={
            style: low_rank(of_style(drawings, style, features), rank) for style in dict.fromkeys(drawings.styles)
        },
        features=features,
    )


def leading(view: View, dims: int) -> View:
    """A `whitened` view cut to its last `dims` axes, along which drawings differ most.

    The axes are scaled to a largest entry of 1, which changes no cosine, and rounded to half precision.
    """
    assert view.axes is not None
    dim = view.axes.shape[1]
    if not 1 <= dims <= dim:
        raise FewstepError(f"{dim} features cannot be seen in {dims} dimensions", f"choose 1...{dim}")
    axes = view.axes[:, dim - dims :]
    return View(view.centre, (axes / axes.abs().max()).half().float())


def of_style(drawings: Pictures, style: str, features: str) -> Statistics:
    """Statistics of the drawings of one style."""
    rows = [i for i, name in enumerate(drawings.styles) if name == style]
    return statistics([drawings.features[rows]], features)


def agreement_with(images: Pictures, reference: Reference, families: Mapping[str, str] | None = None) -> Agreement:
    """`agreement` of images with the reference's drawings. images.features: the network's, (B, D)."""
    return agreement(reference.look_at(images), reference.drawings, reference.seen, families)


def ceiling_with(images: Pictures, reference: Reference, families: Mapping[str, str] | None = None) -> Agreement:
    """`ceiling` of images in the reference: the agreement of its drawings of the images' styles and concepts."""
    return ceiling(reference.look_at(images), reference.drawings, reference.seen, families)


def save_reference(path: Path, reference: Reference) -> None:
    """Write a reference as safetensors. Axes and statistics are in half precision, names are JSON in bytes."""
    style_of, concept_of = numbering(reference.styles), numbering(reference.concepts)
    names = json.dumps([list(style_of), list(concept_of)], ensure_ascii=False, separators=(",", ":")).encode()
    parts = [reference.statistics[style] for style in style_of]
    assert reference.view.axes is not None
    tensors = {
        "codes": reference.codes,
        "scales": reference.scales,
        "centre": reference.view.centre,
        "axes": reference.view.axes.half().contiguous(),
        "styles": numbers(reference.styles, style_of),
        "concepts": numbers(reference.concepts, concept_of),
        "names": torch.frombuffer(bytearray(names), dtype=torch.uint8),
        "counts": torch.tensor([part.count for part in parts]),
        "means": torch.stack([part.mean for part in parts]).half(),
        "factors": torch.stack([part.factor for part in parts]).half(),
        "rests": torch.stack([part.rest for part in parts]).half(),
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {"format": FORMAT, "features": reference.features})


def numbers(names: Sequence[str], number_of: Mapping[str, int]) -> Tensor:
    """The names' numbers, (N,) int16."""
    return torch.tensor([number_of[name] for name in names], dtype=torch.int16)


def load_reference(path: Path, features: str = EfficientNet.label) -> Reference:
    """The reference in a file of `save_reference`. Raises FewstepError unless its network has the label `features`."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise FewstepError(
                    f"not a reference of drawings: {path}", "make it again with python -m recipes.emoji.kit"
                )
            if metadata["features"] != features:
                raise FewstepError(
                    f"the reference {path} has features of {metadata['features']!r}, not of {features!r}",
                    "compare only features of the same network: use another reference or network",
                )
            return unpacked({name: file.get_tensor(name) for name in file.keys()}, features)  # noqa: SIM118
    except FileNotFoundError:
        raise FewstepError(f"reference of drawings not found: {path}", "check the path") from None
    except (OSError, SafetensorError, LookupError, ValueError, TypeError) as error:
        raise FewstepError(
            f"unreadable reference of drawings: {path} ({error})",
            f"the file is damaged: copy it again, or {REMAKE}",
        ) from error


def unpacked(tensors: Mapping[str, Tensor], features: str) -> Reference:
    """The reference in the tensors of a file. Raises LookupError, ValueError or TypeError if they do not fit."""
    images, dims = tensors["codes"].shape
    centre, axes = tensors["centre"], tensors["axes"]
    for name, size in {"scales": dims, "styles": images, "concepts": images}.items():
        if tensors[name].shape != (size,):
            raise ValueError(f"{len(tensors[name])} {name}, not {size}")
    if axes.shape != (len(centre), dims):
        raise ValueError(f"axes of {tuple(axes.shape)}, not {(len(centre), dims)}")
    styles, concepts = json.loads(tensors["names"].numpy().tobytes())
    parts = zip(*(tensors[name] for name in ("counts", "means", "factors", "rests")), strict=True)
    return Reference(
        codes=tensors["codes"],
        scales=tensors["scales"],
        styles=tuple(styles[i] for i in tensors["styles"].tolist()),
        concepts=tuple(concepts[i] for i in tensors["concepts"].tolist()),
        view=View(centre, axes.float()),
        statistics={
            style: LowRankStatistics(int(count), mean.float(), factor.float(), rest.float(), features)
            for style, (count, mean, factor, rest) in zip(styles, parts, strict=True)
        },
        features=features,
    )
