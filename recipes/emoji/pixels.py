"""A consistency model in pixel space: drawings at 32 px without captions, a teacher, and two few-step students.

    python -m recipes.emoji.pixels [--share 0.2] [--group all] [--images 256]

It needs the drawings (python -m recipes.emoji.dataset) and writes $FEWSTEP_CACHE/emoji/pixels: `fresh`, a model with
new weights; `teacher`, trained on the drawings; `cd`, distilled from the teacher; `ct`, trained from new weights
without a teacher. Then it measures them with `studies.pixels`. Each stage is a command, which is printed before it
runs. If you stop it, run it again. It takes about an hour on two cores, and less with a smaller --share.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from pydantic import Field

from fewstep.cli import main_of
from fewstep.configs import Config, Device, Precision
from fewstep.errors import UsageError
from fewstep.io import atomic_folder, cache_dir, write_bytes
from recipes.emoji.build import run_stage
from recipes.emoji.built import read_metadata

SIZE = 32  # pixels
BATCH = 16
STEPS = {"teacher": 8000, "cd": 3000, "ct": 5000}  # optimiser steps
NETWORK = {  # 2.6 M parameters; few channels at 32 x 32 pixels, where they cost most
    "sample_size": SIZE,
    "block_out_channels": (16, 64, 128),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
    "attention_head_dim": 32,
}
SCHEDULE = {  # variance-preserving; v, because eps tells nothing of the picture where alpha is near 0
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
}
TRAINING = {  # options of each training
    "teacher": ["--learning-rate", "1e-3", "--ema", "0.99"],
    "cd": ["--method", "cd", "--psi", "heun", "--k", "50", "--learning-rate", "5e-4", "--ema", "0.99"],
    "ct": [
        *("--method", "ct", "--target", "student", "--curriculum", "easy", "--last-levels", "8"),
        *("--weighting", "inverse-noise", "--learning-rate", "1e-3", "--ema", "0.99"),
    ],
}


class PixelsConfig(Config):
    """Train and measure a teacher and two few-step students in pixel space."""

    group: str = "smileys-emotion"
    """The drawings to learn: a group of things, or all."""
    share: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Share of the trainings' steps; 1 takes about an hour on two cores."""
    images: Annotated[int, Field(ge=40)] = 256
    """Pictures of each row of the table."""
    drawings: Annotated[int, Field(ge=20)] = 1000
    """The most drawings that they are compared with."""
    precision: Precision = "bf16"
    """Precision of the networks."""
    device: Device = "auto"
    """Where to compute."""
    folder: Path = cache_dir() / "emoji" / "images"
    """The image folder that dataset.py built."""
    out: Path = cache_dir() / "emoji" / "pixels"
    """The folder for the models."""


def table_of(config: PixelsConfig) -> Path:
    """The table of the drawings to learn, written into their folder. They are those of the base styles."""
    rows = read_metadata(config.folder, ["base"])
    groups = sorted({row["group"] for row in rows})
    if config.group not in (*groups, "all"):
        raise UsageError(f"there are no drawings of group {config.group}", f"known groups: all, {', '.join(groups)}")
    chosen = [row for row in rows if config.group in (row["group"], "all")]
    file = config.folder / f"pixels-{config.group}.jsonl"
    lines = (json.dumps({key: row[key] for key in ("file_name", "text")}, ensure_ascii=False) for row in chosen)
    write_bytes(file, "".join(f"{line}\n" for line in lines).encode())
    return file


def write_fresh(folder: Path) -> None:
    """Write a model with new weights, a folder of diffusers' DDPMPipeline, unless it is there."""
    if folder.exists():
        return
    torch.manual_seed(0)
    with atomic_folder(folder) as temporary:
        DDPMPipeline(UNet2DModel(**NETWORK), DDPMScheduler(**SCHEDULE)).save_pretrained(temporary)


def stages(config: PixelsConfig, data: Path) -> Mapping[str, Sequence[str]]:
    """Stage -> the command it runs, in order. data: the table of the drawings."""

    def training(name: str, command: str, model: Path) -> list[str]:
        steps = max(1, round(STEPS[name] * config.share))
        places = ["--model", str(model), "--data", str(data), "--out", str(config.out / name)]
        size = ["--size", str(SIZE), "--batch-size", str(BATCH), "--steps", str(steps), "--warmup", str(steps // 20)]
        how = ["--decay", "cosine", "--precision", config.precision, "--device", config.device, "--resume"]
        return ["-m", "fewstep", command, *places, "--full", *TRAINING[name], *size, *how]

    fresh, teacher = config.out / "fresh", config.out / "teacher" / "model"
    measuring = ["--models", str(config.out), "--data", str(data), "--share", f"{config.share:g}"]
    measuring += ["--images", str(config.images), "--drawings", str(config.drawings)]
    return {
        "teacher": training("teacher", "finetune", fresh),
        "cd": training("cd", "distill", teacher),
        "ct": training("ct", "distill", fresh),
        "measure": ["-m", "studies.pixels", *measuring, "--device", config.device],
    }


def run(config: PixelsConfig) -> None:
    """Run all stages. Stop at the first that fails."""
    data = table_of(config)
    write_fresh(config.out / "fresh")
    for name, command in stages(config, data).items():
        run_stage(name, command)


if __name__ == "__main__":
    sys.exit(main_of(PixelsConfig, run))
