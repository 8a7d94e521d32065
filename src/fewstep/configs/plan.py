"""The config of the command that says what a run will need: plan."""

import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from fewstep.configs.base import Typed
from fewstep.configs.training import DistillConfig
from fewstep.errors import UsageError, option

UNITS = {"": 2**30, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "kb": 10**3, "mb": 10**6, "gb": 10**9}


class PlanConfig(DistillConfig):
    """Say what a run will need before it begins: memory, disk and time, and what to change so that it fits.

    Type plan before the command of the run, as in plan distill --model sd15 --data photos.
    """

    argument = ("training", "COMMAND")
    first = ("training", "model", "data", "samples", "memory", "probe")

    training: Annotated[tuple[str, ...], Typed(as_argument=True)] = ()
    """The command of the run: distill or finetune, followed by its own options."""
    out: Path = Path("run")
    """The run's folder, in which plan writes nothing."""
    samples: Annotated[int, Field(ge=1)] | None = None
    """How many images there will be, instead of --data or --synthetic; by default those of --data are counted."""
    memory: Annotated[int, Field(ge=1)] | None = None
    """Memory that the run may take, as in 8GiB, of the GPU if there is one; by default what the machine has."""
    probe: bool = False
    """Also time the operations of a step on this machine, for some seconds, and say how long a step and the run take.
    The machine should do nothing else meanwhile."""
    as_json: bool = False
    """Print one JSON document instead of the table."""

    @field_validator("memory", mode="before")
    @classmethod
    def _bytes(cls, given: Any) -> Any:
        """Bytes of a number with a unit; a number alone is in GiB."""
        found = re.fullmatch(r"([\d.]+)\s*([a-z]*)", str(given).strip().lower())
        if not isinstance(given, str) or found is None or found[2] not in UNITS or found[1].count(".") > 1:
            return given
        return int(float(found[1]) * UNITS[found[2]])

    @model_validator(mode="after")
    def _some_data(self) -> Self:
        if self.data is None and not self.synthetic and self.samples is None:
            raise UsageError(
                f"nothing to train on: {option('data')} is missing",
                f"give {option('data')} or {option('synthetic')}, as the run will, or {option('samples')}",
            )
        return self
