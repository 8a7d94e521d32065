"""The options of the results, and what both its figures and its page name."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from fewstep.configs import Config, Device, Precision
from studies.pages import DOCS

PIECES = {
    "table": "LCM-LoRA beside DDIM, DPM-Solver and DPM-Solver++",
    "controls": "Other steps, other grids, and no LoRA",
    "labels": "Prompts that name no style",
    "figure3": "Styles: the report's Figure 3",
    "grid": "How much style, how much acceleration",
    "finetuned": "A fine-tuned model, with the same LCM-LoRA",
}
FINETUNED = "fxemoji"
STYLE_STEPS, LCM_STEPS = (25, 2, 4, 8, 16, 32), (2, 4, 8)  # of Figure 3; others are held against the first row
STYLE_WEIGHT, FULL = 0.8, 1.0  # the report's, of a style and of lcm
WEIGHTS = "0.4,0.6,0.8,1.0,1.2:0.6,0.8,1.0,1.2"
BARE = "lcm,grid=quadratic:4@1+lcm:0"  # four steps of LCM's sampler without the LoRA


class ResultsConfig(Config):
    """Measure LCM-LoRA beside DDIM, DPM-Solver and DPM-Solver++, with styles, and on a fine-tuned model."""

    images: Annotated[int, Field(ge=8)] = 5000
    """Per row and seed set of the table; the controls take at most 2112, the grid 128, others as many as are real."""
    seed_sets: Annotated[int, Field(ge=1)] = 3
    """Times the table's images are drawn, from other noise each time."""
    pieces: str = ",".join(PIECES)
    """What to measure, of table, controls, labels, figure3, grid and finetuned; the rest of the page stays as it is."""
    guidance_grid: str | None = None
    """Guidance scales that solvers are tried at, on 512 images each, for their best, instead of each piece's own."""
    processes: Annotated[int, Field(ge=1)] = 1
    """Rows are first drawn by so many processes, which share the cores; then one process measures them all."""
    batch_size: int = 16
    """Pictures drawn at once."""
    dtype: Precision = "bf16"
    """Precision of the networks that draw."""
    device: Device = "auto"
    """Where to compute."""
    out: Path = DOCS / "results.md"
    """The page; the figures stand beside it as .json, the pictures in the folder pictures."""
