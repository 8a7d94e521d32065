"""What `fewstep plan` says beside what the runs then take: peak memory, disk, and the time of a step.

    python -m benchmarks.plan [--families sd15,sdxl] [--settings lora,batch] [--size 128]

Each model has random weights and is written to a folder in half precision. sd15 has its full size. The others keep
their widths and have fewer layers, as LAYERS says, so that they fit a machine of 23 GB and some minutes. Plan and run
are fresh processes, one after another; the run's peak memory is the largest resident memory of its process.
"""

import resource
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from fewstep.cli import main_of
from fewstep.commands.plan import plan
from fewstep.configs import Config, DistillConfig, PlanConfig, build
from fewstep.evaluate.bench.process import in_own_process
from fewstep.events import Event, Progress, telling
from fewstep.families import FAMILIES, SCHEDULER, Family
from fewstep.models.quiet import quiet
from fewstep.models.single_file import new_tokenizer
from fewstep.training.run import distill

STEPS = 4
IMAGES = 2
TEXT_LAYERS = 2  # of each text encoder, of families in LAYERS
LAYERS: dict[str, dict[str, Any]] = {  # family -> what its UNet has fewer of
    "sd15": {},
    "sd21": {"layers_per_block": 1},
    "ssd-1b": {"transformer_layers_per_block": (1, 1, 1), "reverse_transformer_layers_per_block": None},
    "sdxl": {"layers_per_block": 1, "transformer_layers_per_block": (1, 1, 2)},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 64, "batch_size": 1},
    "batch": {"rank": 64, "batch_size": 4, "gradient_checkpointing": True},
    "int8": {"rank": 16, "batch_size": 1, "frozen_weights": "int8", "target": "student"},
}


class PlanBenchConfig(Config):
    """Compare plans with the runs that follow them."""

    families: str = ",".join(LAYERS)
    """Which families, between commas."""
    settings: str = ",".join(SETTINGS)
    """Which settings of the run, between commas."""
    size: int = 128
    """Pixels of a side of the training images."""


class Taken(NamedTuple):
    """What a run took."""

    peak_bytes: int
    disk_bytes: int  # of checkpoints and result
    step_s: float


@quiet()
def model_folder(family: Family, folder: Path) -> Path:
    """A folder with a model of random weights in half precision, with the layers that LAYERS leaves."""
    torch.manual_seed(0)
    changes, half = LAYERS[family.name], torch.float16
    encoders = [encoder._replace(layers=TEXT_LAYERS) if changes else encoder for encoder in family.text_encoders]
    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel(**{**family.unet, **changes}).to(half),
        "vae": AutoencoderKL(**family.vae).to(half),
        "scheduler": DDIMScheduler(**SCHEDULER, prediction_type=family.prediction_type),
    }
    for name, encoder in zip(("text_encoder", "text_encoder_2"), encoders, strict=False):
        kind = CLIPTextModelWithProjection if encoder.projection else CLIPTextModel
        parts[name] = kind(CLIPTextConfig(**encoder.config())).to(half)
        parts[name.replace("text_encoder", "tokenizer")] = new_tokenizer(family, encoder)
    if len(encoders) == 2:
        StableDiffusionXLPipeline(**parts).save_pretrained(folder)
    else:
        rest: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        StableDiffusionPipeline(**parts, **rest).save_pretrained(folder)
    return folder


def images_folder(folder: Path, size: int) -> Path:
    """A folder of captioned images."""
    folder.mkdir()
    for number in range(IMAGES):
        Image.effect_noise((size, size), 64).convert("RGB").save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"noise number {number}", encoding="utf-8")
    return folder


def planned(options: dict[str, Any]) -> dict[str, Any]:
    """The plan, as a document."""
    document: dict[str, Any] = plan(build(PlanConfig, training=("distill",), probe=True, **options)).document
    return document


def taken(options: dict[str, Any]) -> Taken:
    """What the run takes, in this process."""
    ends: list[float] = []

    def sink(event: Event) -> None:
        if isinstance(event, Progress) and event.unit == "step":
            ends.append(time.perf_counter())

    config = build(DistillConfig, train_steps=STEPS, log_every=STEPS, **options)
    with telling(sink), quiet():
        distill(config)
    files = [*(config.out / "checkpoints").iterdir(), config.out / "lora.safetensors"]
    times = [end - begun for begun, end in pairwise(ends)][1:]  # the first step warms up
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Taken(peak, sum(file.stat().st_size for file in files), median(times))


def compared(before: dict[str, Any], after: Taken) -> str:
    """Planned and measured values, and their ratios."""
    disk = before["disk_bytes"]
    planned_disk = disk["checkpoints"] / 2 + disk["result"]  # so short a run has one checkpoint
    pairs = (
        (before["peak_bytes"] / 2**30, after.peak_bytes / 2**30),
        (planned_disk / 2**20, after.disk_bytes / 2**20),
        (before["step_s"], after.step_s),
    )
    return " | ".join(f"{a:.2f} | {b:.2f} | {a / b:.2f}" for a, b in pairs)


def run(config: PlanBenchConfig) -> None:
    """Print the table."""
    print("| family | settings | plan, GiB | peak | ratio | plan, MiB of disk | disk | ratio |", end="")
    print(" plan, s a step | step | ratio |")
    print("|" + "---|" * 11)
    for name in config.families.split(","):
        with TemporaryDirectory() as place:
            folder = in_own_process(model_folder, FAMILIES[name], Path(place, "model"))
            data = images_folder(Path(place, "images"), config.size)
            for setting in config.settings.split(","):
                out = Path(place, setting)
                options = {"model": str(folder), "data": str(data), "out": out, "size": config.size, "device": "cpu"}
                options |= SETTINGS[setting]
                before, after = in_own_process(planned, options), in_own_process(taken, options)
                print(f"| {name} | {setting} | {compared(before, after)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main_of(PlanBenchConfig, run))
