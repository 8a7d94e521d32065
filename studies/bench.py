"""What students are judged by: pictures of names of things, beside their teacher's own pictures of other noise."""

from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fewstep.configs import Device, Precision
from fewstep.data.prompts import Prompt
from fewstep.evaluate.row_pictures import RowPictures
from fewstep.metrics.estimate import Estimate
from fewstep.metrics.features import features_of
from fewstep.metrics.kid import kid_of_prompts
from fewstep.metrics.networks import load_inception
from fewstep.metrics.sharpness import sharpness
from fewstep.models.load import pick_device
from studies.lab import Lab, names, take

TEACHER_STEPS = 100
OTHER_NOISE = 1_000_000  # seeds of the teacher's pictures begin here


class BenchConfig(Protocol):
    """What a bench needs of a study's options."""

    @property
    def model(self) -> str:
        """The teacher."""

    @property
    def images(self) -> int:
        """Pictures of each student."""

    @property
    def batch_size(self) -> int:
        """Pictures drawn at once."""

    @property
    def precision(self) -> Precision:
        """Of the networks that draw."""

    @property
    def device(self) -> Device:
        """Where to compute."""


class Teacher(NamedTuple):
    """What the students of one guidance are judged by."""

    features: Tensor  # (N, D) of Inception
    agreement: float
    sharpness: float


class Bench:
    """Names of things, and what pictures of them are measured with."""

    def __init__(self, config: BenchConfig) -> None:
        self.config, self.lab = config, Lab(config.device, config.precision, config.batch_size)
        every = names()
        self.prompts: tuple[Prompt, ...] = take(every, config.images)
        self.numbers = torch.arange(config.images) % len(every)  # of each picture's prompt
        self.teachers: dict[float, Teacher] = {}

    @cached_property
    def inception(self) -> Any:
        """The network of KID."""
        return load_inception(pick_device(self.config.device))

    def draw(self, title: str, count: int | None = None, model: str | None = None, **options: Any) -> RowPictures:
        """A picture of each prompt, or of the first so many, by the teacher or another model."""
        texts = [prompt.text for prompt in self.prompts[:count]]
        return self.lab.draw(texts, model or self.config.model, title=title, **options)

    def draw_teacher(self, guidance_scale: float, count: int | None = None, seed: int = 0) -> RowPictures:
        """The teacher's pictures."""
        title = f"teacher at guidance {guidance_scale:g}"
        return self.draw(title, count, guidance_scale=guidance_scale, seed=seed, solver="ddim", steps=TEACHER_STEPS)

    def teacher(self, guidance_scale: float) -> Teacher:
        """At that guidance, of other noise than the students'."""
        if guidance_scale not in self.teachers:
            pictures = self.draw_teacher(guidance_scale, seed=OTHER_NOISE)
            self.teachers[guidance_scale] = Teacher(
                self.features(pictures), self.agreement(pictures).value, sharp(pictures)
            )
        return self.teachers[guidance_scale]

    def features(self, pictures: RowPictures) -> Tensor:
        """Inception's."""
        return features_of(self.inception, pictures)

    def agreement(self, pictures: RowPictures) -> Estimate:
        """The share of pictures that show what was asked for."""
        return self.lab.agreement(pictures, self.prompts)

    def kid_t(self, pictures: RowPictures, guidance_scale: float) -> Estimate:
        """KID to the teacher's pictures at that guidance."""
        own, teacher = self.features(pictures), self.teacher(guidance_scale).features
        return kid_of_prompts(own, teacher, self.numbers, self.numbers)


def sharp(pictures: RowPictures) -> float:
    """The mean of the pictures' sharpness."""
    return float(sharpness(pictures.batches()).mean())
