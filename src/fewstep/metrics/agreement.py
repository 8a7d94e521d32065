"""Agreement: whether an image shows the concept of its prompt, judged by drawings in other styles.

It takes the place of the CLIP score when there is no hub, because no package registry carries CLIP's weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.errors import FewstepError

SHRINKAGE = 0.1  # share of the mean variance that is added to every variance before whitening


class Pictures(NamedTuple):
    """Features of images, with the style and the concept of each drawing or prompt."""

    features: Tensor  # (N, D)
    styles: Sequence[str]
    concepts: Sequence[str]


@dataclass(frozen=True)
class Agreement:
    """The share of images whose nearest drawing in another style has the image's concept."""

    score: float  # share of the counted images, 0...1
    chance: float  # the score of drawings picked at random
    count: int  # number of counted images
    left_out: int  # number of images whose concept no other style has
    hits: tuple[bool, ...]  # for the counted images, in order
    counted: tuple[int, ...] = ()  # their numbers among all images


class View(NamedTuple):
    """An affine map of features, (f - centre) @ axes. Cosines are computed after it."""

    centre: Tensor  # (D,)
    axes: Tensor | None  # (D, K); None = the identity

    def __call__(self, features: Tensor) -> Tensor:
        """Unit vectors (N, K) of features (N, D)."""
        moved = features.to(self.centre) - self.centre
        return F.normalize(moved if self.axes is None else moved @ self.axes, dim=1)


def centred(features: Tensor) -> View:
    """The view that subtracts the mean of features (N, D), in float32 or better."""
    exact = features.detach().to(torch.promote_types(features.dtype, torch.float32))
    return View(exact.mean(dim=0), None)


def whitened(features: Tensor, shrinkage: float = SHRINKAGE) -> View:
    """The view in which features (N, D) have mean 0 and nearly equal variance in every direction.

    Axes U (L + shrinkage mean(L))^(-1/2) of the covariance U L U^T, with L ascending. Directions in which all drawings
    differ much, above all the style, then count no more than others.
    """
    exact = features.detach().to(torch.float64)
    if len(exact) < 2 or not exact.std(dim=0).any():
        raise FewstepError("the drawings' features are all equal", "use at least 2 different drawings")
    variances, directions = torch.linalg.eigh(exact.T.cov())
    scale = (variances.clamp(min=0) + shrinkage * variances.mean()).rsqrt()
    return View(exact.mean(dim=0).float(), (directions * scale).float())


def agreement(
    images: Pictures,
    drawings: Pictures,
    view: View | None = None,
    families: Mapping[str, str] | None = None,
    chunk: int = 1024,
) -> Agreement:
    """The share of images whose nearest drawing in another style, by cosine, has their concept.

    images: generated, with the style and concept of their prompt. drawings: real ones. Drawings of an image's own style
    are not candidates, so a copy of the style's drawing does not count. view: None = `whitened` by the drawings.
    families: style -> a common name for styles that share drawings; such styles do not judge each other. None = every
    style is its own family. chunk: images that are compared at a time.
    """
    check_labels(images)
    check_labels(drawings)
    view = whitened(drawings.features) if view is None else view
    families = families or {}
    styles = [[families.get(style, style) for style in pictures.styles] for pictures in (images, drawings)]
    style_of, concept_of = numbering(*styles), numbering(images.concepts, drawings.concepts)
    of_images = labels(styles[0], style_of), labels(images.concepts, concept_of)
    of_drawings = labels(styles[1], style_of), labels(drawings.concepts, concept_of)
    hit, share = nearest_hits(view(images.features), view(drawings.features), of_images, of_drawings, chunk)
    counted = share > 0
    if not counted.any():
        raise FewstepError(
            f"none of the {len(hit)} images' concepts is drawn in another style", "use drawings of these concepts"
        )
    hits = hit[counted]
    return Agreement(
        score=float(hits.double().mean()),
        chance=float(share[counted].mean()),
        count=len(hits),
        left_out=len(hit) - len(hits),
        hits=tuple(hits.tolist()),
        counted=tuple(counted.nonzero()[:, 0].tolist()),
    )


def ceiling(
    images: Pictures,
    drawings: Pictures,
    view: View | None = None,
    families: Mapping[str, str] | None = None,
    chunk: int = 1024,
) -> Agreement:
    """The agreement of the real drawings of the images' own styles and concepts, which a perfect model would score.

    Each pair of style and concept counts as often as it was prompted. Pairs without a drawing are left out.
    """
    check_labels(images)
    check_labels(drawings)
    place = {pair: i for i, pair in enumerate(zip(drawings.styles, drawings.concepts, strict=True))}
    found = [place[pair] for pair in zip(images.styles, images.concepts, strict=True) if pair in place]
    if not found:
        raise FewstepError("there is no drawing of any prompted pair of style and concept", "use other drawings")
    styles, concepts = [drawings.styles[i] for i in found], [drawings.concepts[i] for i in found]
    return agreement(Pictures(drawings.features[found], styles, concepts), drawings, view, families, chunk)


def nearest_hits(
    images: Tensor, drawings: Tensor, of_images: tuple[Tensor, Tensor], of_drawings: tuple[Tensor, Tensor], chunk: int
) -> tuple[Tensor, Tensor]:
    """Whether each image's nearest candidate has its concept, (N,), and the share of its candidates that have it, (N,).

    images (N, D), drawings (M, D): unit vectors. of_images, of_drawings: numbers of their styles and concepts.
    """
    hits, shares = [], []
    parts = [torch.split(part, chunk) for part in (images, *of_images)]
    for rows, style, concept in zip(*parts, strict=True):
        candidate = (style[:, None] != of_drawings[0]).to(rows.device)
        match = (concept[:, None] == of_drawings[1]).to(rows.device) & candidate
        nearest = (rows @ drawings.T).masked_fill(~candidate, -torch.inf).argmax(dim=1, keepdim=True)
        hits.append(match.gather(1, nearest).squeeze(1).cpu())
        shares.append((match.sum(dim=1).double() / candidate.sum(dim=1).clamp(min=1)).cpu())
    return torch.cat(hits), torch.cat(shares)


def numbering(*names: Sequence[str]) -> dict[str, int]:
    """Name -> number, for each different name."""
    return {name: i for i, name in enumerate(dict.fromkeys(name for part in names for name in part))}


def labels(names: Sequence[str], numbers: dict[str, int]) -> Tensor:
    """The numbers of the names, (N,)."""
    return torch.tensor([numbers[name] for name in names])


def check_labels(pictures: Pictures) -> None:
    """Raise FewstepError unless each picture has one style and one concept, and all features are finite."""
    counts = len(pictures.features), len(pictures.styles), len(pictures.concepts)
    if len(set(counts)) > 1 or not counts[0]:
        raise FewstepError(
            f"{counts[0]} images, {counts[1]} styles and {counts[2]} concepts",
            "each image needs one style and one concept",
        )
    if not pictures.features.isfinite().all():
        raise FewstepError("some image features are not finite numbers", "leave out images with NaN")
