"""Makes all parts of the embedded model in one command, which can be stopped and run again.

    python -m recipes.emoji.build [--until STAGE] [--only STAGE] [--teacher-steps N]

Each stage is a separate command, which is printed before it runs. Finished stages are not run again.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fewstep.cli import main_of
from fewstep.configs import Config, Device, Precision
from fewstep.errors import FewstepError, UsageError
from fewstep.io import cache_dir

ROOT = Path(__file__).parents[2]
PATHS = os.pathsep.join((str(ROOT), str(ROOT / "src")))  # for the stages' processes


class BuildConfig(Config):
    """Make the embedded model, its LoRAs and the kit, and put them into the package."""

    until: str | None = None
    """The last stage to run; by default all stages run."""
    only: str | None = None
    """The only stage to run."""
    teacher_steps: int = 60000
    """Optimiser steps of the teacher, 64 drawings each. More steps are better."""
    images: int = 1000
    """Pictures of each measurement."""
    precision: Precision = "bf16"
    """Precision of the networks in training."""
    device: Device = "auto"
    """Where to compute."""


def stages(config: BuildConfig) -> Mapping[str, Sequence[Sequence[str]]]:
    """Stage -> the commands it runs, in order."""
    folder = cache_dir() / "emoji"
    model, images = str(folder / "teacher" / "model"), folder / "images"
    training = ["--precision", config.precision, "--device", config.device, "--resume"]

    def finetune(name: str, *options: str) -> list[str]:
        places = ["--model", model, "--data", str(images / f"{name}.jsonl"), "--out", str(folder / name)]
        return ["-m", "fewstep", "finetune", *places, *training, *options]

    def recipe(name: str, *options: str) -> list[str]:
        return ["-m", f"{__package__}.{name}", *options]

    def measured(split: str, *options: str) -> list[str]:
        return recipe("measure", "--model", model, "--split", split, "--images", str(config.images), *options)

    lcm = ["--lora", str(folder / "lcm" / "lora.safetensors"), "--solver", "lcm", "--steps", "4"]
    style = ["--rank", "8", "--batch-size", "32", "--learning-rate", "5e-4", "--warmup", "20", "--decay", "cosine",
             "--ema", "0.98", "--steps"]  # fmt: skip
    return {
        "dataset": [recipe("dataset")],
        "autoencoder": [recipe("autoencoder", "--steps", "4500", *training)],
        "decoder": [recipe("autoencoder", *POLISHING, "--device", config.device, "--resume")],
        "text": [recipe("text", *training)],
        "teacher": [recipe("teacher", "--steps", str(config.teacher_steps), *TEACHING, *training)],
        "lcm": [
            recipe("lcm", "--model", model, "--data", str(images), "--out", str(folder / "lcm"), *training, *DISTILLING)
        ],
        "styles": [finetune("high-contrast", *style, "4000"), finetune("noto-mono", *style, "1000")],
        "fxemoji": [finetune("fxemoji", "--full", *FINETUNING)],
        "kit": [recipe("kit")],
        "measure": [measured("base"), measured("held-out"), measured("base", *lcm), measured("held-out", *lcm)],
        "ship": [recipe("ship")],
    }


POLISHING = [
    *(
        "--decoder-of",
        str(cache_dir() / "emoji" / "autoencoder" / "vae"),
        "--out",
        str(cache_dir() / "emoji" / "decoder"),
    ),
    *("--steps", "7000", "--batch-size", "32", "--warmup", "100", "--lpips-weight", "1.0"),
]
TEXT_ENCODER = cache_dir() / "emoji" / "text" / "text_encoder"
TEACHING = ["--text-encoder", str(TEXT_ENCODER)]
DISTILLING = [
    *("--method", "lcd", "--psi", "dpm-solver++", "--k", "50", "--guidance-scale", "4", "--steps", "2400"),
    *("--rank", "16", "--batch-size", "16", "--learning-rate", "7e-4", "--warmup", "100"),
    *("--decay", "cosine", "--ema", "0.99"),
]
FINETUNING = [
    *("--batch-size", "32", "--learning-rate", "3e-4", "--warmup", "20", "--decay", "cosine", "--ema", "0.99"),
    *("--steps", "400"),
]


def run(config: BuildConfig) -> None:
    """Run the requested stages. Stop at the first that fails."""
    plan = stages(config)
    for name in (config.until, config.only):
        if name is not None and name not in plan:
            raise UsageError(f"unknown stage {name}", f"known stages: {', '.join(plan)}")
    names = list(plan)
    selected = [config.only] if config.only else names[: names.index(config.until) + 1 if config.until else None]
    for name in selected:
        for command in plan[name]:
            run_stage(name, command)


def run_stage(name: str, command: Sequence[str]) -> None:
    """Run a stage's command, which is printed first. Raises FewstepError if it fails."""
    print(f"\n== {name}: python {shlex.join(command)}", file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, *command], env=os.environ | {"PYTHONPATH": PATHS}, check=False)
    if done.returncode:
        raise FewstepError(f"stage {name} ended with exit code {done.returncode}", "see its messages above")


if __name__ == "__main__":
    sys.exit(main_of(BuildConfig, run))
