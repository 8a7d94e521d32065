"""Draws sixty-four prompts on one sheet, for people who judge the model during and after training.

    python -m recipes.emoji.sheet [--model emoji] [--lora lcm] [--solver lcm --steps 4] --out sheet.png

A star marks held-out pairs of style and concept. With --style, all prompts are in that style.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

from fewstep.cli import main_of
from fewstep.configs import Config, Device, Draw, Precision, Solver, Where, build
from fewstep.engines.torch import TorchEngine
from fewstep.io import atomic_path
from fewstep.models.model import Model
from fewstep.session import Session
from fewstep.sheets import captioned
from recipes.emoji.captions import main_caption
from recipes.emoji.names import COMMON, is_held_out

SHEET_STYLES = ("fluent-3d", "noto", "twemoji", "emojione-bw")
SHEET_CONCEPTS = {  # each is held out in one of the four styles
    "1f60e": "smiling face with sunglasses",
    "1f62d": "loudly crying face",
    "1f419": "octopus",
    "1f43c": "panda",
    "1f41d": "honeybee",
    "1f369": "doughnut",
    "1f352": "cherries",
    "1f697": "automobile",
    "1f33b": "sunflower",
    "1f384": "Christmas tree",
    "1f3bb": "violin",
    "1f4a3": "bomb",
}
OWN_WORDS = (
    "a red apple",
    "cute dog, 3d style",
    "flat blue house",
    "rocket flying to the moon",
    "birthday cake with candles",
    "a happy red robot",
    "red heart, twitter style",
    "angry cat, blob",
    "cat",
    "a bunch of flowers",
    "slice of pizza, flat",
    "green frog",
    "guitar, outline",
    "sleepy face",
    "an umbrella in the rain",
    "qwertz flumph 42",
)


class SheetConfig(Config):
    """Draw sixty-four prompts on one sheet."""

    model: str = "emoji"
    """emoji, or a Stable Diffusion folder."""
    lora: tuple[str, ...] = ()
    """FILE or FILE:WEIGHT, several times."""
    solver: Solver = "dpm-solver++"
    """How to draw."""
    steps: int = 20
    """Network calls of one branch."""
    guidance_scale: float | None = None
    """1 = off; by default what the model or LoRA recommends."""
    dtype: Precision = "fp32"
    """Precision of the networks."""
    device: Device = "auto"
    """Where to compute."""
    style: str | None = None
    """Draw well-known things in this style instead, a key of captions.STYLES."""
    out: Path
    """The PNG."""


def sheet_prompts() -> dict[str, bool]:
    """Prompt -> whether its pair of style and concept is held out: prompts in four styles, then free ones."""
    pairs = {
        main_caption(style, label): is_held_out(code, style)
        for style in SHEET_STYLES
        for code, label in SHEET_CONCEPTS.items()
    }
    return pairs | dict.fromkeys(OWN_WORDS, False)


def style_prompts(style: str) -> dict[str, bool]:
    """Thirty-two well-known things in one style."""
    return {main_caption(style, thing): False for thing in COMMON[:32]}


def save_sheet(session: Session, path: Path, prompts: Mapping[str, bool], **options: object) -> None:
    """Draw the prompts with seeds 0, 1, ... and write them as one PNG, with a star if True. options: of Draw."""
    pictures = [picture.image for picture in session.draw(build(Draw, prompts=tuple(prompts), **options))]
    labels = [prompt + " *" * held_out for prompt, held_out in prompts.items()]
    with atomic_path(path) as temporary:
        captioned(pictures, labels).save(temporary, "PNG")


def save_samples(model: Model, path: Path, steps: int = 10, guidance_scale: float = 4.0) -> None:
    """The sheet of a model in training, with DPM-Solver++(2M)."""
    options = {"solver": "dpm-solver++", "steps": steps, "guidance_scale": guidance_scale}
    where = build(Where, model=str(model.path), loras=())
    save_sheet(Session.on(TorchEngine(model), where), path, sheet_prompts(), **options)


def run(config: SheetConfig) -> None:
    """Draw the sheet."""
    session = Session(config.model, config.lora, engine="torch", dtype=config.dtype, device=config.device)
    options = {"solver": config.solver, "steps": config.steps, "guidance_scale": config.guidance_scale}
    prompts = style_prompts(config.style) if config.style else sheet_prompts()
    save_sheet(session, config.out, prompts, **options)


if __name__ == "__main__":
    sys.exit(main_of(SheetConfig, run))
