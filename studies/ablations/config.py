"""The options of the ablations."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from fewstep.assets import MODEL
from fewstep.configs import Config, Device, Precision, Typed
from studies.pages import DOCS


class AblationsConfig(Config):
    """Measure what each choice in a distillation is worth: several seeds an arm, each beside the base's same seed."""

    model: str = MODEL
    """The teacher, as `fewstep distill` takes it."""
    data: Path | None = None
    """What to train on; by default every third drawing of the emoji recipe's data set, half of them naming no style."""
    arms: Annotated[tuple[str, ...], Typed(several=True)] = ()
    """Only these arms, by the names they have on the page, and the base."""
    seeds: Annotated[int, Field(ge=2)] = 3
    """Trainings of an arm, which differ in order, noise and beginning."""
    train_steps: Annotated[int, Field(ge=1)] = 160
    """Optimiser steps of a training."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Samples of a step, and pictures drawn at once."""
    processes: Annotated[int, Field(ge=1)] = 1
    """Trainings at a time, of one thread each."""
    images: Annotated[int, Field(ge=8)] = 256
    """Pictures of each training, of the same prompts and noise."""
    precision: Precision = "bf16"
    """Of the networks' arithmetic, in training and in drawing."""
    device: Device = "cpu"
    """Where to compute."""
    out: Path = DOCS / "ablations.md"
    """The page; the figures stand beside it as .json, the sheet in pictures/."""
