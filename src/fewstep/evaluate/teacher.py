"""A row beside the teacher's own pictures of the same prompts from other noise: what distillation should not change."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.evaluate.prompts import numbers_of
from fewstep.evaluate.row_pictures import RowPictures
from fewstep.metrics.estimate import Estimate, prompt_groups
from fewstep.metrics.features import Quarters, features_of
from fewstep.metrics.frechet import Statistics, by_root, needed, statistics
from fewstep.metrics.kid import kid_of_prompts
from fewstep.metrics.mind import mind_estimate
from fewstep.metrics.networks import Inception
from fewstep.metrics.sharpness import sharpness, sharpness_ratio

OTHER_NOISE = 1_000_000_000  # the teacher's first seed, past those of any row
QUARTERS = 4  # of a picture


class TeacherSide(NamedTuple):
    """The teacher's own pictures, as Inception sees them."""

    pictures: RowPictures
    prompts: Tensor  # (M,) the number of each picture's prompt
    features: Tensor  # (M, 2048)
    sharpness: Tensor  # (M,)
    statistics: Statistics | None  # None of fewer pictures than a Fréchet distance needs
    of_quarters: Statistics | None  # of the quarters of the first M / 4 pictures


class TeacherMeasures(NamedTuple):
    """A row beside it; None is not measured."""

    kid: Estimate | None  # of the same prompts
    fid: float | None
    patch_fid: float | None  # of the quarters of the first N / 4 pictures, which are as many
    mind: Estimate
    sharpness: Estimate  # the row's over the teacher's


def teacher_side(pictures: RowPictures, texts: Sequence[str], inception: Inception) -> TeacherSide:
    """The teacher's pictures, looked at; texts: the prompt of each."""
    features = features_of(inception, pictures, "teacher")
    return TeacherSide(
        pictures,
        numbers_of(texts),
        features,
        sharpness(pictures.batches()),
        statistics_of(features, inception),
        quarter_statistics(pictures, len(features), inception),
    )


def to_teacher(pictures: RowPictures, texts: Sequence[str], side: TeacherSide, inception: Inception) -> TeacherMeasures:
    """A row's pictures beside the teacher's; texts: the prompt of each, the teacher's in the same order."""
    features, prompts = features_of(inception, pictures, "KID-T"), numbers_of(texts)
    whole = statistics_of(features, inception) if side.statistics else None
    parts = quarter_statistics(pictures, len(features), inception) if whole else None
    least = min(len(features), len(side.features))
    groups = prompt_groups(prompts), prompt_groups(side.prompts)
    return TeacherMeasures(
        kid=kid_to(features, prompts, side),
        fid=by_root(side.statistics, whole) if side.statistics and whole else None,
        patch_fid=by_root(side.of_quarters, parts) if side.of_quarters and parts else None,
        mind=mind_estimate(features[:least], side.features[:least], prompt_groups(prompts[:least])),
        sharpness=sharpness_ratio(sharpness(pictures.batches()), side.sharpness, groups),
    )


def kid_to(features: Tensor, prompts: Tensor, side: TeacherSide) -> Estimate | None:
    """KID of the prompts that both drew; None for too few."""
    common = min(int(prompts.max()), int(side.prompts.max())) + 1
    own, others = prompts < common, side.prompts < common
    try:
        return kid_of_prompts(features[own], side.features[others], prompts[own], side.prompts[others])
    except FewstepError:
        return None


def statistics_of(features: Tensor, inception: Inception) -> Statistics | None:
    """None of fewer pictures than a Fréchet distance needs."""
    return statistics([features], inception.label) if len(features) >= needed(inception.dim) else None


def quarter_statistics(pictures: RowPictures, count: int, inception: Inception) -> Statistics | None:
    """Of the quarters of the first quarter of `count` pictures; None likewise."""
    first = count // QUARTERS
    if first * QUARTERS < needed(inception.dim):
        return None
    features = features_of(inception, Quarters(first_batches(pictures, first)), "Patch-FID-T")
    return statistics_of(features[: first * QUARTERS], inception)


def first_batches(pictures: RowPictures, count: int) -> RowPictures:
    """The batches with the first `count` pictures."""
    sizes = torch.tensor([batch["images"] for batch in pictures.facts]).cumsum(0)
    batches = int((sizes < count).sum()) + 1
    return pictures._replace(files=pictures.files[:batches], facts=pictures.facts[:batches])
