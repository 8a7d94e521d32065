"""The options of the comparison of methods."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from fewstep.assets import MODEL
from fewstep.configs import Config, Device, Precision, Typed
from studies.pages import DOCS


class MethodsConfig(Config):
    """Measure what each method of distillation gives from equal training."""

    model: str = MODEL
    """The teacher, as `fewstep distill` takes it."""
    data: Path | None = None
    """What to train on; by default every third drawing of the emoji recipe's data set, half of them naming no style."""
    students: Annotated[tuple[str, ...], Typed(several=True)] = ()
    """Only these students, by the names they have on the page."""
    train_steps: Annotated[int, Field(ge=1)] = 400
    """Optimiser steps of a training."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Samples of a step, and pictures drawn at once."""
    processes: Annotated[int, Field(ge=1)] = 1
    """Trainings at a time, of one thread each."""
    images: Annotated[int, Field(ge=8)] = 256
    """Pictures of each row, of the same prompts and noise."""
    only_train: bool = False
    """Train what is not trained yet, and measure nothing."""
    precision: Precision = "bf16"
    """Of the networks' arithmetic, in training and in drawing."""
    device: Device = "cpu"
    """Where to compute."""
    out: Path = DOCS / "methods.md"
    """The page; the figures stand beside it as .json, the sheet in pictures/."""
