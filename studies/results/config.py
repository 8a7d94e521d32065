"""The options of the results, and what both their figures and their page name."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fewstep.configs import Config, Device, Precision
from studies.pages import DOCS

PIECES = {
    "survey": "the table that surveys print: DDIM 32, DPM-Solver 16, DPM-Solver++ 8, LCM-LoRA 4",
    "names": "names of things: rows of equal cost, and the LoRA in 4, 2, 1 and 8 steps",
    "typed": "the same rows on prompts as people type them",
    "best": "solvers at the guidance that each is best at",
    "plugin": "the LoRA on a fine-tuned model, and with two styles",
}
FINETUNED = "fxemoji"
STYLE_WEIGHT, STYLE_STEPS = 0.8, 25  # the report's, of a style with lcm; steps of a style alone


class ResultsConfig(Config):
    """Measure what the LCM-LoRA that ships is worth, and write docs/results.md and the README's table."""

    pieces: str = ",".join(PIECES)
    """What to measure, of survey, names, typed, best and plugin; the rest of the page stays as it is."""
    rows: Literal["all", "plain"] = "all"
    """plain: only draw the rows that the LCM-LoRA is no part of, with the teacher's pictures, and write no page."""
    teacher_guidance: Annotated[float, Field(ge=1, le=50)] | None = None
    """Guidance of the teacher and of all rows without the LoRA; by default what the model recommends."""
    images: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The share of each piece's pictures to draw, for a quick look."""
    processes: Annotated[int, Field(ge=1)] = 1
    """So many processes draw, and share the cores; then one measures."""
    batch_size: int = 16
    """Pictures drawn at once."""
    dtype: Precision = "bf16"
    """Precision of the networks that draw."""
    device: Device = "auto"
    """Where to compute."""
    out: Path = DOCS / "results.md"
    """The page; the figures stand beside it as .json, the pictures in the folder pictures."""
