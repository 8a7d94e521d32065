"""The numbers of a row's images: FID, KID, LPIPS to the teacher, agreement, diversity, what EfficientNet says."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from fewstep.assets import shipped_kit
from fewstep.data.prompts import Prompt
from fewstep.errors import FewstepError, Line, option
from fewstep.evaluate.prompts import numbers_of, reference_images
from fewstep.evaluate.row_pictures import RowPictures
from fewstep.evaluate.teacher import TeacherMeasures, TeacherSide, to_teacher
from fewstep.events import doing
from fewstep.hub import title_of
from fewstep.io import sha256_bytes, sha256_file
from fewstep.metrics.agreement import Agreement, Pictures
from fewstep.metrics.clip_score import CLIP, Judge, judge
from fewstep.metrics.diversity import diversity
from fewstep.metrics.estimate import prompt_groups
from fewstep.metrics.features import Real, device_of, features_of, read_real
from fewstep.metrics.frechet import by_root, needed, statistics
from fewstep.metrics.inception_score import inception_score
from fewstep.metrics.kid import FEWEST, KID, kid
from fewstep.metrics.lpips import LPIPS, load_lpips
from fewstep.metrics.networks import EfficientNet, Inception, load_efficientnet, load_inception
from fewstep.metrics.reference import Reference, agreement_with, ceiling_with, load_reference
from fewstep.models.load import load_clip

KID_BLOCKS = 10  # number of blocks; few images have fewer
SMALLEST = 31  # smallest side of an image for LPIPS, in pixels
DIVERSE_PROMPTS, DIVERSE_IMAGES = 8, 4  # prompts, and images of each prompt, for diversity

REAL, TEACHER = ("real ones", "reference"), ("of the teacher's", "teacher_images")  # others, and what they come from

T = TypeVar("T")


class Tools(NamedTuple):
    """The measuring tools. One is None if this machine, or these prompts and images, cannot give it."""

    lpips: LPIPS | None = None
    inception: Inception | None = None
    real: Real | None = None
    efficientnet: EfficientNet | None = None
    real_efficientnet: Real | None = None  # also None if there are too few images for a Fréchet distance
    drawings: Reference | None = None
    clip: Judge | None = None  # only on request
    notes: tuple[Line, ...] = ()  # reasons why tools are None


class Measures(NamedTuple):
    """The measures of a row; None = not measured."""

    fid: list[float] | None = None  # of each seed set
    kid: KID | None = None
    lpips_teacher: float | None = None
    agreement: Agreement | None = None
    groups: Tensor | None = None  # (H,) of prompts, of each of the images that agreement counts
    diversity: float | None = None
    efficientnet_score: float | None = None
    efficientnet_distance: list[float] | None = None  # of each seed set
    clip_score: float | None = None
    to_teacher: TeacherMeasures | None = None


@doing("loading what measures")
def load_tools(
    reference: str | Path | None,
    prompts: Sequence[Prompt],
    size: int,
    images: int,
    sets: int,
    device: torch.device,
    clip: str | None = None,
    teacher: int = 0,
) -> Tools:
    """The networks and references for `sets` times `images` images of `size` pixels, and `teacher` of the teacher's.

    clip: the model for CLIP score; None = without CLIP score. Raises FewstepError if this model cannot be loaded.
    """
    real_images, left_out = ([], ()) if reference is None else reference_images(reference)[:2]
    notes = list(left_out)

    def attempt(what: str, load: Callable[[], T]) -> T | None:
        try:
            return load()
        except FewstepError as error:
            notes.append(f"{what} left out: {error.whole}")
            return None

    scorer = load_judge(clip, (prompt.text for prompt in prompts), device) if clip else None
    lpips = inception = real = real_efficientnet = drawings = None
    if size < SMALLEST:
        notes.append(f"LPIPS and diversity left out: they need images of {SMALLEST} pixels a side, not {size}")
    else:
        lpips = attempt("LPIPS and diversity", lambda: load_lpips(device))
    efficientnet = attempt("agreement and EfficientNet score", lambda: load_efficientnet(device))
    if efficientnet and any(prompt.style and prompt.concept for prompt in prompts):
        drawings = attempt("agreement", lambda: drawings_for(prompts))
    if reference is None:
        notes.append(f"FID and KID left out: they compare with real images, which {option('reference')} names")
    if reference or teacher:
        inception = attempt("FID and KID" if reference else "KID-T and MIND", lambda: load_inception(device))
    if inception and teacher:
        notes += too_few("FID-T", needed(inception.dim), images * sets, teacher, "; KID-T does with fewer", TEACHER)
    if inception and reference:
        real = read_real(real_images, str(reference), size, inception)
        notes += too_few("FID", needed(inception.dim), images, len(real.features), "; KID does with fewer")
        notes += too_few("KID", 2 * FEWEST, images * sets, len(real.features))
    if reference and efficientnet:
        few = too_few("EfficientNet distance", needed(efficientnet.dim), images, len(real_images))
        real_efficientnet = None if few else read_real(real_images, str(reference), size, efficientnet)
        notes += few
    return Tools(lpips, inception, real, efficientnet, real_efficientnet, drawings, scorer, tuple(map(Line, notes)))


def load_judge(name: str, prompts: Iterable[str], device: torch.device) -> Judge:
    """CLIP from a folder or the hub, to judge pictures of these prompts. Raises FewstepError if it cannot be loaded."""
    folder, network, tokenizer, processor = load_clip(name, device)
    sha256 = sha256_bytes(*(sha256_file(file).encode() for file in sorted(folder.glob("*.safetensors"))))
    clip = CLIP(network, tokenizer, processor, f"CLIP {title_of(folder)}, images as its processor scales them", sha256)
    return judge(clip, prompts)


def too_few(
    what: str, fewest: int, images: int, real: int, instead: str = "", others: tuple[str, str] = REAL
) -> list[str]:
    """The reason why a metric cannot be computed, if it needs `fewest` images and there are fewer; else empty.

    images: of a row. real: the other images. instead: words at the end of the reason. others: what the other images
    are, and the option that they come from.
    """
    if min(images, real) >= fewest:
        return []
    return [
        f"{what} left out: it needs {fewest} images on both sides, but there are {images} ({option('images')}) and"
        f" {real} {others[0]} ({option(others[1])}){instead}"
    ]


def drawings_for(prompts: Sequence[Prompt]) -> Reference:
    """The shipped reference. Raises FewstepError unless it has some prompt's concept in another style."""
    drawings = load_reference(shipped_kit() / "reference.safetensors")
    pairs = frozenset(zip(drawings.concepts, drawings.styles, strict=True))
    if not any(recognisable(prompt, pairs) for prompt in prompts):
        raise FewstepError(
            "the drawings that ship have no prompt's concept in a style other than its own",
            "concepts are code points such as 1f431",
        )
    return drawings


def recognisable(prompt: Prompt, pairs: frozenset[tuple[str, str]]) -> bool:
    """Whether agreement can judge the prompt: `pairs` of concept and style have its concept in another style."""
    styles = {style for _, style in pairs}
    return bool(prompt.style) and any((prompt.concept, style) in pairs for style in styles - {prompt.style})


# --- the numbers -------------------------------------------------------------------------------------------


def measure(
    tools: Tools,
    pictures: RowPictures,
    teacher: RowPictures | None,
    diverse: RowPictures | None,
    prompts: Sequence[Prompt],
    sets: int,
    side: TeacherSide | None = None,
) -> Measures:
    """The numbers of a row.

    pictures: `sets` seed sets, one after another. prompts: one per picture. teacher: its pictures from the same noise,
    for the first pictures or all. diverse: DIVERSE_IMAGES pictures of each prompt, one prompt after another. side: the
    teacher's pictures from other noise.
    """
    values = Measures()
    if tools.inception and tools.real:
        features = features_of(tools.inception, pictures, "FID and KID")
        fid = fid_over(features, tools.real.features, sets, tools.inception.label)
        values = values._replace(fid=fid, kid=kid_of(features, tools.real.features))
    if tools.inception and side:
        found = to_teacher(pictures, [prompt.text for prompt in prompts], side, tools.inception)
        values = values._replace(to_teacher=found)
    if tools.clip:
        features = features_of(tools.clip.network, pictures, "CLIP score")
        values = values._replace(clip_score=tools.clip.score(features, (prompt.text for prompt in prompts)))
    if tools.lpips:
        values = values._replace(
            lpips_teacher=lpips_between(tools.lpips, pictures, teacher) if teacher else None,
            diversity=diversity_of(tools.lpips, diverse) if diverse else None,
        )
    return (
        values._replace(**seen_by(tools.efficientnet, tools, pictures, prompts, sets)) if tools.efficientnet else values
    )


def seen_by(
    network: EfficientNet, tools: Tools, pictures: RowPictures, prompts: Sequence[Prompt], sets: int
) -> dict[str, Any]:
    """The fields of Measures that come from EfficientNet's features."""
    features = features_of(network, pictures, "agreement")
    labelled, real = labelled_pictures(features, prompts), tools.real_efficientnet
    found = agreement_with(labelled, tools.drawings) if labelled and tools.drawings else None
    named = [prompt.text for prompt in prompts if prompt.style and prompt.concept]
    return {
        "efficientnet_score": inception_score(network.probabilities(features.to(device_of(network))), splits=1).mean,
        "efficientnet_distance": real and fid_over(features, real.features, sets, network.label),
        "agreement": found,
        "groups": found and prompt_groups(numbers_of(named))[list(found.counted)],
    }


def fid_over(features: Tensor, real: Tensor, sets: int, label: str) -> list[float] | None:
    """Fréchet distances of the seed sets (N, D) to the real images (M, D).

    None if a set has fewer images than a covariance needs. The distance would be too large by an unknown amount.
    """
    parts = features.chunk(sets)
    if min(len(real), *(len(part) for part in parts)) < needed(features.shape[1]):
        return None
    target = statistics([real], label)
    return [by_root(target, statistics([part], label)) for part in parts]


def kid_of(features: Tensor, real: Tensor) -> KID | None:
    """KID with its interval, over at most KID_BLOCKS disjoint blocks; None for too few images."""
    blocks = min(KID_BLOCKS, len(features) // FEWEST, len(real) // FEWEST)
    return kid(features, real, blocks) if blocks >= 2 else None


def lpips_between(lpips: LPIPS, pictures: RowPictures, teacher: RowPictures) -> float:
    """The mean LPIPS between the row's images and the teacher's from the same noise, for all teacher images."""
    device, distances = device_of(lpips), []
    for x, y in zip(pictures.batches(), teacher.batches(), strict=False):
        distances.append(lpips(x[: len(y)].to(device), y[: len(x)].to(device)).cpu())
    return float(torch.cat(distances).double().mean())


def diversity_of(lpips: LPIPS, diverse: RowPictures) -> float:
    """The mean over the prompts of the mean LPIPS over all pairs of a prompt's images."""
    images = torch.split(torch.cat(list(diverse.batches())).to(device_of(lpips)), DIVERSE_IMAGES)
    return sum(diversity(of_prompt, lpips) for of_prompt in images) / len(images)


def ceiling_of(prompts: Sequence[Prompt], drawings: Reference) -> float | None:
    """The agreement score of the real drawings of the prompted pairs; None if there is no such drawing."""
    labelled = labelled_pictures(torch.zeros(len(prompts), len(drawings.view.centre)), prompts)
    try:
        return ceiling_with(labelled, drawings).score if labelled else None
    except FewstepError:
        return None


def labelled_pictures(features: Tensor, prompts: Sequence[Prompt]) -> Pictures | None:
    """The images (N, D) whose prompts have a style and a concept."""
    labels = [(i, p.style, p.concept) for i, p in enumerate(prompts) if p.style and p.concept]
    if not labels:
        return None
    rows, styles, concepts = zip(*labels, strict=True)
    return Pictures(features[list(rows)], styles, concepts)
