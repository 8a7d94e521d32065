"""Agreement of pictures with their prompts: the share that shows the requested thing, judged by other styles.

    python -m recipes.emoji.measure --split base --images 1000 --solver ddim --steps 50 [--lora lcm]

It prints one JSON document and adds it as a line to OUT. The ceiling is the score of the real drawings of the same
pairs in the same run. An interrupted run starts again from the beginning. Fewer --images are faster, but rougher.
"""

import json
import math
import random
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from fewstep.cli import main_of
from fewstep.configs import Config, Device, Draw, Precision, Solver, build
from fewstep.errors import FewstepError
from fewstep.events import counted
from fewstep.io import append_line, cache_dir
from fewstep.metrics.agreement import Agreement, Pictures, agreement, ceiling, whitened
from fewstep.metrics.networks import load_efficientnet
from fewstep.models.load import pick_device
from fewstep.models.references import parse_reference
from fewstep.session import Session
from recipes.emoji.built import read_metadata
from recipes.emoji.captions import main_caption
from recipes.emoji.features import drawing_features

FAMILIES = {"fluent-3d": "fluent", "fluent-color": "fluent", "fluent-flat": "fluent"}  # share drawings


class MeasureConfig(Config):
    """Measure how many pictures show the thing in their prompt."""

    model: str = "emoji"
    """emoji, or a Stable Diffusion folder."""
    lora: tuple[str, ...] = ()
    """FILE or FILE:WEIGHT, several times."""
    split: Literal["base", "held-out", "style"] = "base"
    """The prompted pairs of style and concept: base = trained on, held-out = not trained on, style = other styles."""
    style: str | None = None
    """Only pairs of this style."""
    images: Annotated[int, Field(ge=1)] = 1000
    """Number of pairs, always the same random ones; all of the split if it has fewer."""
    solver: Solver = "ddim"
    """How to draw."""
    steps: int = 50
    """Network calls of one branch."""
    guidance_scale: float | None = None
    """1 = off; by default what the model or LoRA recommends."""
    batch_size: int = 16
    """Pictures drawn at a time."""
    dtype: Precision = "fp32"
    """Precision of the networks that draw."""
    device: Device = "auto"
    """Where to compute."""
    folder: Path = cache_dir() / "emoji" / "images"
    """The image folder dataset.py built."""
    out: Path = cache_dir() / "emoji" / "measurements.jsonl"
    """The file a line is added to."""


def chosen(config: MeasureConfig) -> list[dict[str, Any]]:
    """The rows of the prompted pairs, the same every time."""
    rows = [row for row in read_metadata(config.folder, [config.split]) if config.style in (None, row["style"])]
    if not rows:
        raise FewstepError(f"no pairs of style {config.style} in split {config.split}", "see captions.STYLES")
    return random.Random(0).sample(rows, min(config.images, len(rows)))


def picture_features(config: MeasureConfig, prompts: list[str]) -> tuple[torch.Tensor, dict[str, Any]]:
    """Features (N, 1280) of a picture of each prompt, and the plan of the drawing."""
    session = Session(config.model, config.lora, engine="torch", dtype=config.dtype, device=config.device)
    network = load_efficientnet(pick_device(config.device))
    draw = build(
        Draw,
        prompts=tuple(prompts),
        solver=config.solver,
        steps=config.steps,
        guidance_scale=config.guidance_scale,
        batch_size=config.batch_size,
    )
    plan, device = session.plan(draw), pick_device(config.device)
    pictures = counted(session.pictures(draw, plan), "drawing", "picture", len(prompts))
    features = torch.cat([network(picture.pixels[None].to(device)).cpu() for picture in pictures])
    return features, {"solver": plan.solver_name, "steps": plan.steps, "guidance_scale": plan.guidance_scale}


def label(lora: str) -> str:
    """The name of a LoRA in the tables: its own, or that of the run that made it."""
    path, weight, _ = parse_reference(lora)
    name = path.parent.name if path.name == "lora.safetensors" else path.stem
    return name if weight == 1 else f"{name}:{weight:g}"


def numbers(result: Agreement) -> dict[str, float]:
    """The score with its standard error, the chance and the count."""
    return {"score": result.score, "error": math.sqrt(result.score * (1 - result.score) / result.count),
            "chance": result.chance, "count": result.count}  # fmt: skip


def run(config: MeasureConfig) -> None:
    """Draw, compare, print and keep the figures."""
    rows = chosen(config)
    drawings = drawing_features(config.folder, cache_dir() / "emoji")
    features, plan = picture_features(config, [main_caption(row["style"], row["label"]) for row in rows])
    pictures = Pictures(features, [row["style"] for row in rows], [row["concept"] for row in rows])
    view, values = whitened(drawings.features), {}
    for name, families in (("agreement", None), ("agreement_one_fluent", FAMILIES)):
        result, limit = (of(pictures, drawings, view, families) for of in (agreement, ceiling))
        values[name] = {
            "drawn": numbers(result),
            "ceiling": numbers(limit),
            "share_of_ceiling": result.score / limit.score,
        }
    asked = {"model": config.model, "lora": [label(text) for text in config.lora], "split": config.split}
    line = {**asked, "style": config.style, **plan, "dtype": config.dtype, **values}
    config.out.parent.mkdir(parents=True, exist_ok=True)
    append_line(config.out, json.dumps(line))
    print(json.dumps(line, indent=2))


if __name__ == "__main__":
    sys.exit(main_of(MeasureConfig, run))
