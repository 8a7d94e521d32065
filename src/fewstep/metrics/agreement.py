"""Agreement: does an image show the concept it was prompted for, judged by drawings in other styles.

It stands where CLIP score stands for users with a hub: no package registry carries CLIP's weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.errors import FewstepError

SHRINKAGE = 0.1  # of the mean variance, added to every variance before whitening


class Pictures(NamedTuple):
    """Features of images, with the style and the concept that each was drawn or prompted in."""

    features: Tensor  # (N, D)
    styles: Sequence[str]
    concepts: Sequence[str]


@dataclass(frozen=True)
class Agreement:
    """How many images have, as their nearest drawing of another style, one of their own concept."""

    score: float  # 0...1, of the images counted
    chance: float  # what drawings picked at random would score
    count: int  # images counted
    left_out: int  # images whose concept no other style draws
    hits: tuple[bool, ...]  # of the images counted, in order


class View(NamedTuple):
    """An affine map of features, (f - centre) @ axes, after which cosines are taken."""

    centre: Tensor  # (D,)
    axes: Tensor | None  # (D, K); None leaves them as they are

    def __call__(self, features: Tensor) -> Tensor:
        """Unit vectors (N, K), of features (N, D)."""
        moved = features.to(self.centre) - self.centre
        return F.normalize(moved if self.axes is None else moved @ self.axes, dim=1)


def centred(features: Tensor) -> View:
    """The view from the mean of features (N, D), in float32 or better."""
    exact = features.detach().to(torch.promote_types(features.dtype, torch.float32))
    return View(exact.mean(dim=0), None)


def whitened(features: Tensor, shrinkage: float = SHRINKAGE) -> View:
    """The view in which features (N, D) have mean 0 and nearly equal variance in every direction.

    Axes U (L + shrinkage mean(L))^(-1/2) of the covariance U L U^T, L rising. Directions in which all drawings
    differ much, style first of all, then count no more than others.
    """
    exact = features.detach().to(torch.float64)
    if len(exact) < 2 or not exact.std(dim=0).any():
        raise FewstepError("the drawings' features are all equal", "give different drawings, at least 2")
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
    """Share of images whose nearest drawing, by cosine among those of other styles, is of their concept.

    images: generated, with the style and concept of their prompt. drawings: real ones; those of an image's
    own style are no candidates, so that copying the style's drawing is not what is measured.
    view: None is `whitened` by the drawings. families: a common name for styles that share drawings, which
    would vouch for each other; None makes every style its own. chunk: images compared at once.
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
            f"none of the {len(hit)} images' concepts is drawn in another style", "give drawings of these concepts"
        )
    hits = hit[counted]
    return Agreement(
        score=float(hits.double().mean()),
        chance=float(share[counted].mean()),
        count=len(hits),
        left_out=len(hit) - len(hits),
        hits=tuple(hits.tolist()),
    )


def ceiling(
    images: Pictures,
    drawings: Pictures,
    view: View | None = None,
    families: Mapping[str, str] | None = None,
    chunk: int = 1024,
) -> Agreement:
    """The agreement of the real drawings of the images' own styles and concepts: what a perfect model scores.

    Each pair of style and concept counts as often as it was prompted; pairs without a drawing are left out.
    """
    check_labels(images)
    check_labels(drawings)
    place = {pair: i for i, pair in enumerate(zip(drawings.styles, drawings.concepts, strict=True))}
    found = [place[pair] for pair in zip(images.styles, images.concepts, strict=True) if pair in place]
    if not found:
        raise FewstepError("no image was prompted for a style and concept that is drawn", "give other drawings")
    styles, concepts = [drawings.styles[i] for i in found], [drawings.concepts[i] for i in found]
    return agreement(Pictures(drawings.features[found], styles, concepts), drawings, view, families, chunk)


def nearest_hits(
    images: Tensor, drawings: Tensor, of_images: tuple[Tensor, Tensor], of_drawings: tuple[Tensor, Tensor], chunk: int
) -> tuple[Tensor, Tensor]:
    """Whether each image's nearest candidate has its concept, and which share of its candidates has it, (N,).

    images (N, D), drawings (M, D): unit vectors; of_images, of_drawings: numbers of styles and concepts.
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
    """A number for each different name."""
    return {name: i for i, name in enumerate(dict.fromkeys(name for part in names for name in part))}


def labels(names: Sequence[str], numbers: dict[str, int]) -> Tensor:
    """The numbers of the names, (N,)."""
    return torch.tensor([numbers[name] for name in names])


def check_labels(pictures: Pictures) -> None:
    """Refuse pictures without exactly one style and concept each, and features that are not finite."""
    counts = len(pictures.features), len(pictures.styles), len(pictures.concepts)
    if len(set(counts)) > 1 or not counts[0]:
        raise FewstepError(
            f"{counts[0]} images, {counts[1]} styles and {counts[2]} concepts", "give one style and concept for each"
        )
    if not pictures.features.isfinite().all():
        raise FewstepError("some image features are not finite numbers", "leave images that hold NaN out")
