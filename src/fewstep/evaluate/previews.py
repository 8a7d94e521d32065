"""Previews of a run: what its result draws by now after fixed prompts, from fixed noise, and how good that is.

A session of their own draws them, so that they are the pictures that people get, and the training is not touched.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from fewstep.assets import MODEL
from fewstep.configs import AdapterConfig, Draw
from fewstep.data.prompts import Prompt, shipped_prompts
from fewstep.engines import DEFAULT
from fewstep.errors import FewstepError, UsageError, number_of
from fewstep.evaluate.measure import drawings_for, labelled_pictures, load_judge
from fewstep.evaluate.prompts import numbers_of
from fewstep.evaluate.protocol import surroundings
from fewstep.evaluate.row_pictures import draw
from fewstep.evaluate.teacher import OTHER_NOISE
from fewstep.events import note
from fewstep.images import to_image
from fewstep.io import append_line, atomic_folder, atomic_path, read_lines
from fewstep.metrics.clip_score import Judge
from fewstep.metrics.features import FeatureNetwork, device_of, features_of
from fewstep.metrics.kid import FEWEST, kid_of_prompts
from fewstep.metrics.networks import EfficientNet, Inception, load_efficientnet, load_inception
from fewstep.metrics.reference import Reference, agreement_with
from fewstep.metrics.sharpness import sharpness
from fewstep.metrics.tone import Tone, tone
from fewstep.models.model import parts_sha256
from fewstep.session import Plan, Session
from fewstep.sheets import ScoredSheet, SheetRow, grid

STEPS = (1, 2, 4)  # of a few-step result
ON_SHEET = 8  # pictures in a row of a sheet
BATCH = 8  # pictures drawn at once
TEACHER_STEPS = 20  # of dpm-solver++
BETTER = {"kid_t": min, "agreement": max, "clip_score": max}  # measures that may choose the best, the first first


class TeacherPictures(NamedTuple):
    """What the teacher draws after the same prompts from other noise."""

    features: Tensor | None  # Inception's, (N, D); None without Inception
    tone: Tone
    sharpness: float


class Scorers(NamedTuple):
    """What scores pictures; None is not here."""

    inception: Inception | None = None
    efficientnet: EfficientNet | None = None
    drawings: Reference | None = None  # that agreement compares with
    clip: Judge | None = None


@dataclass
class Previews:
    """Draws and scores the results of one run."""

    config: AdapterConfig
    prompts: Sequence[Prompt]  # none: the run's captions, or for emoji those of the drawings that ship
    imitates: bool  # whether the result shall draw as its teacher does

    def __post_init__(self) -> None:
        """Raise FewstepError for a CLIP model that cannot be loaded, before anything is trained."""
        self._scorers: Scorers | None = None
        self._teacher: TeacherPictures | None = None
        if self.config.preview_clip is not None and self.prompts:
            self._clip(self.prompts)

    def draw(self, step: int, result: Path, captions: Sequence[str]) -> ScoredSheet:
        """The preview after `step` steps: its sheet, which is written to previews/, and its line of quality.jsonl.

        result: the LoRA or model folder. It is kept as the best if it scores better than those before.
        """
        prompts = self._prompts(captions)
        with self._session(result) as session:
            if self._scorers is None:
                self._scorers = self._loaded(prompts, session)
            if self.imitates and self._teacher is None:
                self._teacher = self._teacher_pictures(prompts, session)
            texts = tuple(prompt.text for prompt in prompts)
            pictures = {steps: pixels_of(session, *plan) for steps, plan in plans_of(session, texts).items()}
            usual = min(session.plan(Draw(prompts=texts)).steps, max(pictures))
        values = {
            f"{name}_{steps}": value
            for steps, pixels in pictures.items()
            for name, value in self._scores(pixels, prompts).items()
        }
        sheet = sheet_of(pictures, prompts, step)
        path = self.config.out / "previews" / f"step-{step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        with atomic_path(path) as temporary:
            sheet.save(temporary, "PNG")
        self._record(step, result, values, usual)
        return ScoredSheet(sheet, values)

    def _prompts(self, captions: Sequence[str]) -> tuple[Prompt, ...]:
        found = tuple(self.prompts)
        if not found and self.config.model == MODEL:
            found = shipped_prompts().prompts
        found = found or spread(tuple(Prompt(caption) for caption in captions), self.config.preview_images)
        return tuple(islice(cycle(found or (Prompt(""),)), self.config.preview_images))

    def _session(self, result: Path) -> Session:
        whole = result.is_dir()
        loras = () if whole else (str(result),)
        return Session(str(result) if whole else self.config.model, loras, engine=DEFAULT, device=self.config.device)

    def _clip(self, prompts: Sequence[Prompt]) -> Judge | None:
        if self.config.preview_clip is None:
            return None
        return load_judge(self.config.preview_clip, (prompt.text for prompt in prompts), torch.device("cpu"))

    def _loaded(self, prompts: Sequence[Prompt], session: Session) -> Scorers:
        device, scorers = session.engine.device, Scorers(clip=self._clip(prompts))
        try:
            if self.imitates and len({prompt.text for prompt in prompts}) >= 2 * FEWEST:
                scorers = scorers._replace(inception=load_inception(device))
            if any(prompt.style and prompt.concept for prompt in prompts):
                scorers = scorers._replace(efficientnet=load_efficientnet(device), drawings=drawings_for(prompts))
        except FewstepError as error:
            note(f"previews are pictures without all scores: {error.whole}")
        return scorers

    def _teacher_pictures(self, prompts: Sequence[Prompt], session: Session) -> TeacherPictures:
        """What the model without LoRAs draws. The pictures stay in the cache, for other runs too."""
        texts = tuple(prompt.text for prompt in prompts)
        wish = Draw(prompts=texts, solver="dpm-solver++", steps=TEACHER_STEPS, seed=OTHER_NOISE, batch_size=BATCH)
        with Session(self.config.model, (), engine=DEFAULT, device=self.config.device) as teacher:
            around = surroundings(parts_sha256(teacher.facts.path), teacher.engine.device)
            pictures = draw(teacher, teacher.plan(wish), wish, around, "the teacher's pictures")
        inception = self._scorers and self._scorers.inception
        return TeacherPictures(
            features_of(inception, pictures, "KID-T") if inception else None,
            tone(pictures.batches()),
            float(sharpness(pictures.batches()).mean()),
        )

    def _scores(self, pixels: Tensor, prompts: Sequence[Prompt]) -> dict[str, float]:
        """Measure -> value, of pictures (N, 3, H, W) of the prompts. Ratios are to the teacher's pictures."""
        values, scorers, teacher = {}, self._scorers or Scorers(), self._teacher
        if teacher is not None:
            own = tone(torch.split(pixels, BATCH))
            values = {
                "sharpness": float(sharpness(torch.split(pixels, BATCH)).mean()) / max(teacher.sharpness, 1e-9),
                "contrast": own.contrast / max(teacher.tone.contrast, 1e-9),
                "saturation": own.saturation / max(teacher.tone.saturation, 1e-9),
            }
            if scorers.inception is not None and teacher.features is not None:
                numbers = numbers_of([prompt.text for prompt in prompts])
                found = kid_of_prompts(seen(scorers.inception, pixels), teacher.features, numbers, numbers)
                values |= {"kid_t": found.value, "kid_t_error": found.error}
        if scorers.efficientnet is not None and scorers.drawings is not None:
            labelled = labelled_pictures(seen(scorers.efficientnet, pixels), prompts)
            assert labelled is not None, "drawings are loaded for prompts with a style and a concept"
            values["agreement"] = agreement_with(labelled, scorers.drawings).score
        if scorers.clip is not None:
            features = seen(scorers.clip.network, pixels)
            values["clip_score"] = scorers.clip.score(features, (prompt.text for prompt in prompts))
        return values

    def _record(self, step: int, result: Path, values: Mapping[str, float], steps: int) -> None:
        """Append the line of quality.jsonl, and keep the result if it is the best."""
        path = self.config.out / "quality.jsonl"
        measure = next((f"{name}_{steps}" for name in BETTER if f"{name}_{steps}" in values), None)
        best = measure is not None and is_best(values[measure], measure, path)
        if best:
            keep(result, self.config.out)
        append_line(path, json.dumps({"step": step, **values, "measure": measure, "best": best}))


def spread(prompts: Sequence[Prompt], count: int) -> tuple[Prompt, ...]:
    """At most `count` of the different prompts, evenly spread over them."""
    different = tuple(dict.fromkeys(prompts))
    return different if len(different) <= count else tuple(different[i * len(different) // count] for i in range(count))


def plans_of(session: Session, texts: tuple[str, ...]) -> dict[int, tuple[Draw, Plan]]:
    """Number of steps -> how to draw in it: those of STEPS that a few-step result can, else its usual number."""
    found: dict[int, tuple[Draw, Plan]] = {}
    few = any(recipe.accelerates for recipe in session.recipes)
    for steps in (*STEPS, None) if few else (None,):
        wish = Draw(prompts=texts, steps=steps, batch_size=BATCH)
        try:
            plan = session.plan(wish)
        except UsageError:
            continue
        if steps is not None or not found:
            found[plan.steps] = (wish, plan)
    return found


def pixels_of(session: Session, wish: Draw, plan: Plan) -> Tensor:
    """Pixels (N, 3, H, W) in [-1, 1]."""
    return torch.stack([picture.pixels for picture in session.pictures(wish, plan)])


def sheet_of(pictures: Mapping[int, Tensor], prompts: Sequence[Prompt], step: int) -> Image.Image:
    """The first pictures of each number of steps, a row each. step: of the training."""
    rows = [
        SheetRow(number_of(steps, "step"), f"after {step:,} of training", [*map(to_image, pixels[:ON_SHEET])])
        for steps, pixels in pictures.items()
    ]
    return grid(rows, [prompt.text for prompt in prompts[:ON_SHEET]])


def seen(network: FeatureNetwork, pixels: Tensor) -> Tensor:
    """Features (N, D) of pixels (N, 3, H, W), on the CPU."""
    return torch.cat([network(x.to(device_of(network))).cpu() for x in torch.split(pixels, BATCH)])


def is_best(value: float, measure: str, path: Path) -> bool:
    """Whether no line of quality.jsonl has a value of the measure that is as good."""
    before = [line[measure] for line in read_lines(path) if measure in line]
    better = BETTER[measure.rpartition("_")[0]]
    return not before or (value != better(before) and better(value, *before) == value)


def keep(result: Path, out: Path) -> None:
    """Copy the result beside the run's own: best.safetensors, or best/ for a model."""
    if result.is_dir():
        with atomic_folder(out / "best") as folder:
            shutil.copytree(result, folder, dirs_exist_ok=True)
    else:
        with atomic_path(out / "best.safetensors") as file:
            shutil.copyfile(result, file)
