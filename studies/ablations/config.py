"""The options of the ablations."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from fewstep.assets import MODEL
from fewstep.configs import Config, Device, Precision, Typed
from studies.pages import DOCS


class AblationsConfig(Config):
    """Measure what each choice in a distillation is worth: runs of one budget, each beside a shared base run."""

    model: str = MODEL
    """The teacher, as `fewstep distill` takes it."""
    data: Path | None = None
    """What to train on; by default every third drawing of the emoji recipe's data set, a third naming no style."""
    groups: Annotated[tuple[str, ...], Typed(several=True)] = ()
    """Only these: guidance, target, loss, psi, k, focus, weighting, grid, method, rank, length, seed."""
    train_steps: Annotated[int, Field(ge=1)] = 150
    """Optimiser steps of a run."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Samples of a step, and pictures drawn at once."""
    long: bool = False
    """Train the base run twice as long, too."""
    processes: Annotated[int, Field(ge=1)] = 1
    """Runs trained at a time, of one thread each."""
    images: Annotated[int, Field(ge=8)] = 256
    """Pictures for each line, of the same prompts and noise."""
    precision: Precision = "bf16"
    """Of the networks' arithmetic in training; pictures are drawn in fp32."""
    device: Device = "cpu"
    """Where to compute."""
    out: Path = DOCS / "ablations.md"
    """The page; the figures stand beside it as .json, the sheets in pictures/."""
