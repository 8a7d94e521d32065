"""Times opening a session at a family's full size, without and with an LCM-LoRA, and changing the LoRA.

    python -m benchmarks.load [--family sd15] [--dtype bf16] [--rounds 5]     a folder of random fp16 weights, rank 64
    python -m benchmarks.load --command [--rounds 5]                          a picture, from the command to the file

Every load runs in a process of its own, whose imports come first and are not timed. diffusers loads the same folder
and LoRA by from_pretrained, load_lora_weights and fuse_lora. The floor only reads the bytes of the files. The time
of the processors, in brackets, leaves out what other programs take from them. SDXL takes 15 GB of the disk, while its
folder is made, and 8 in the end; nothing is left.
"""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

import torch

from fewstep.cli import main_of
from fewstep.configs import Config
from fewstep.families import FAMILIES
from fewstep.models.load import DTYPES
from fewstep.models.random_weights import random_folder, random_lora
from fewstep.session import Session

RANK = 64
CLASSES = (  # imports of the other libraries' classes that a picture of emoji needs
    "from diffusers import AutoencoderKL, UNet2DConditionModel; from transformers import CLIPTextModel, CLIPTokenizer"
)


class Time(NamedTuple):
    """A time, or how long something took, in seconds."""

    wall: float
    cpu: float  # of all processors that worked on it, in the program and in the system

    def __sub__(self, begun: "Time") -> "Time":
        return Time(self.wall - begun.wall, self.cpu - begun.cpu)


Times = Mapping[str, Time]


def now() -> Time:
    """The time, and what this process has used of the processors."""
    return Time(time.perf_counter(), time.process_time())


class LoadBenchmarkConfig(Config):
    """Open sessions at full size with fewstep and diffusers."""

    family: Literal["emoji", "sd15", "sd21", "ssd-1b", "sdxl"] = "sd15"
    """Of which model; emoji is the smallest."""
    dtype: Literal["fp32", "bf16"] = "bf16"
    """Precision of the networks."""
    rounds: int = 5
    """Measured runs of each, every one in a fresh process. The median counts."""
    command: bool = False
    """Measure a picture of the embedded model instead, from the command to the file."""


class LoadJob(NamedTuple):
    """The files to load."""

    folder: Path
    lora: Path
    dtype: str


def alone(job: LoadJob) -> Times:
    """fewstep, the model without a LoRA."""
    begun = now()
    Session(str(job.folder), (), engine="torch", dtype=job.dtype, device="cpu")
    return {"load": now() - begun}


def plugged(job: LoadJob) -> Times:
    """fewstep, with the LoRA, then with another weight of it, then without it."""
    begun = now()
    session = Session(str(job.folder), [str(job.lora)], engine="torch", dtype=job.dtype, device="cpu")
    loaded = now()
    session.plug([f"{job.lora}:0.5"])
    changed = now()
    session.plug([])
    return {
        "load": loaded - begun,
        "another weight": changed - loaded,
        "without it again": now() - changed,
    }


def diffusers(job: LoadJob) -> Times:
    """diffusers, with the LoRA fused, then with another weight of it."""
    from diffusers import DiffusionPipeline

    begun = now()
    pipe = DiffusionPipeline.from_pretrained(
        job.folder, torch_dtype=DTYPES[job.dtype], local_files_only=True, safety_checker=None
    )
    pipe.load_lora_weights(str(job.lora.parent), weight_name=job.lora.name, local_files_only=True)
    pipe.fuse_lora()
    loaded = now()
    pipe.unfuse_lora()
    pipe.fuse_lora(lora_scale=0.5)
    return {"load": loaded - begun, "another weight": now() - loaded}


def floor(job: LoadJob) -> Times:
    """Reading the bytes of the model's files and of the LoRA."""
    files = [*job.folder.rglob("*.safetensors"), job.lora]
    begun = now()
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while opened.read(2**24):
                pass
    return {"load": now() - begun}


def measured(arrangement: Callable[[LoadJob], Times], job: LoadJob) -> tuple[Times, float]:
    """Seconds, and the peak memory in GiB, in a process that does nothing else."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (arrangement, job))


def _measured(arrangement: Callable[[LoadJob], Times], job: LoadJob) -> tuple[Times, float]:
    if arrangement is diffusers:
        from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline  # noqa: F401  (not timed)
    seconds = arrangement(job)
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def made(folder: Path, family: str, dtype: str) -> LoadJob:
    """A model folder of random fp16 weights, and a LoRA of it that adapts what LCM-LoRA does.

    A process of its own makes them: those that are measured begin with the peak of the one that starts them.
    """
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_make, (folder, family, dtype))


def _make(folder: Path, family: str, dtype: str) -> LoadJob:
    model = random_folder(folder / "model", FAMILIES[family])
    return LoadJob(model, random_lora(folder / "lora.safetensors", FAMILIES[family], RANK), dtype)


def loads(config: LoadBenchmarkConfig) -> None:
    """Print the table of loads."""
    arrangements = (alone, plugged, diffusers, floor)
    results: dict[Callable[[LoadJob], Times], list[tuple[Times, float]]] = {one: [] for one in arrangements}
    with TemporaryDirectory() as folder:
        job = made(Path(folder), config.family, config.dtype)
        for _ in range(config.rounds):
            for arrangement in arrangements:
                results[arrangement].append(measured(arrangement, job))
    unit, peer = (middle([times["load"] for times, _ in results[one]]) for one in (alone, diffusers))
    print(f"{config.family}, {config.dtype}, rank {RANK}, {torch.get_num_threads()} threads, {config.rounds} rounds\n")
    print("| arrangement | what | seconds (of processors) | / the model alone | / diffusers with the LoRA | peak GiB |")
    print("|---|---|---|---|---|---|")
    for what_runs, rows in results.items():
        peak = max(peak for _, peak in rows)
        for what in rows[0][0]:
            took = middle([times[what] for times, _ in rows])
            ratios = " | ".join(f"{took.wall / one.wall:.2f} ({took.cpu / one.cpu:.2f})" for one in (unit, peer))
            print(f"| {what_runs.__name__} | {what} | {took.wall:.2f} ({took.cpu:.2f}) | {ratios} | {peak:.2f} |")


def middle(times: Sequence[Time]) -> Time:
    """The median of each of the two times."""
    return Time(median(one.wall for one in times), median(one.cpu for one in times))


def command(config: LoadBenchmarkConfig) -> None:
    """Print the parts of the time of a picture."""
    whole: list[Time] = []
    imports: list[Time] = []
    drawing: list[Time] = []
    with TemporaryDirectory() as folder:
        sampling = ["-m", "fewstep", "sample", "a red fox", "--out", folder]
        for count in range(config.rounds + 1):  # the first compiles what is not compiled yet
            for arguments, found in ((sampling, whole), (["-c", CLASSES], imports)):
                took = program(arguments)
                found += [took] * bool(count)
    with Session(engine="torch") as session:
        for _ in range(config.rounds):
            begun = now()
            list(session.draw("a red fox"))
            drawing.append(now() - begun)
    total, classes, computing = (middle(found) for found in (whole, imports, drawing))
    print("| part | seconds (of processors) |\n|---|---|")
    for part, took in (
        ("`fewstep sample`, from the command to the file", total),
        ("importing the model classes alone", classes),
        ("computing the picture, in a session that is open", computing),
        ("what is left", total - classes - computing),
    ):
        print(f"| {part} | {took.wall:.2f} ({took.cpu:.2f}) |")


def program(arguments: Sequence[str]) -> Time:
    """How long Python takes with these arguments, its modules compiled as in an installed package."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Time(time.perf_counter() - begun, used)


def run(config: LoadBenchmarkConfig) -> None:
    """Print the table."""
    (command if config.command else loads)(config)


if __name__ == "__main__":
    sys.exit(main_of(LoadBenchmarkConfig, run))
