"""Times opening a session at a family's full size, without and with an LCM-LoRA, and changing the LoRA.

    python -m benchmarks.load [--family sd15] [--dtype bf16] [--rounds 3]     a folder of random fp16 weights, rank 64
    python -m benchmarks.load --command [--rounds 3]                          a picture, from the command to the file

Every load runs in a process of its own, whose imports come first and are not timed. diffusers loads the same folder
and LoRA by from_pretrained, load_lora_weights and fuse_lora. The floor only reads the bytes of the files.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

import torch

from benchmarks.single_file import write_random
from fewstep.cli import main_of
from fewstep.configs import Config
from fewstep.families import FAMILIES
from fewstep.lora.layers import initial
from fewstep.lora.low_rank import Adapter, LowRank
from fewstep.lora.recipe import Recipe
from fewstep.lora.writing import save_adapter
from fewstep.models.load import DTYPES, load_model
from fewstep.models.single_file import save_folder
from fewstep.session import Session

RANK = 64
CLASSES = (  # imports of the other libraries' classes that a picture of emoji needs
    "from diffusers import AutoencoderKL, UNet2DConditionModel; from transformers import CLIPTextModel, CLIPTokenizer"
)
Seconds = Mapping[str, float]


class LoadBenchmarkConfig(Config):
    """Open sessions at full size with fewstep and diffusers."""

    family: Literal["sd15", "sd21", "ssd-1b", "sdxl"] = "sd15"
    """The family of the model."""
    dtype: Literal["fp32", "bf16"] = "bf16"
    """Precision of the networks."""
    rounds: int = 3
    """Measured runs of each, every one in a fresh process. The median counts."""
    command: bool = False
    """Measure a picture of the embedded model instead, from the command to the file."""


class LoadJob(NamedTuple):
    """The files to load."""

    folder: Path
    lora: Path
    dtype: str


def alone(job: LoadJob) -> Seconds:
    """fewstep, the model without a LoRA."""
    begun = time.perf_counter()
    Session(str(job.folder), (), dtype=job.dtype, device="cpu")
    return {"load": time.perf_counter() - begun}


def plugged(job: LoadJob) -> Seconds:
    """fewstep, with the LoRA, then with another weight of it, then without it."""
    begun = time.perf_counter()
    session = Session(str(job.folder), [str(job.lora)], dtype=job.dtype, device="cpu")
    loaded = time.perf_counter()
    session.plug([f"{job.lora}:0.5"])
    changed = time.perf_counter()
    session.plug([])
    return {
        "load": loaded - begun,
        "another weight": changed - loaded,
        "without it again": time.perf_counter() - changed,
    }


def diffusers(job: LoadJob) -> Seconds:
    """diffusers, with the LoRA fused, then with another weight of it."""
    from diffusers import DiffusionPipeline

    begun = time.perf_counter()
    pipe = DiffusionPipeline.from_pretrained(
        job.folder, torch_dtype=DTYPES[job.dtype], local_files_only=True, safety_checker=None
    )
    pipe.load_lora_weights(str(job.lora.parent), weight_name=job.lora.name, local_files_only=True)
    pipe.fuse_lora()
    loaded = time.perf_counter()
    pipe.unfuse_lora()
    pipe.fuse_lora(lora_scale=0.5)
    return {"load": loaded - begun, "another weight": time.perf_counter() - loaded}


def floor(job: LoadJob) -> Seconds:
    """Reading the bytes of the model's files and of the LoRA."""
    files = [*job.folder.rglob("*.safetensors"), job.lora]
    begun = time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while opened.read(2**24):
                pass
    return {"load": time.perf_counter() - begun}


def measured(arrangement: Callable[[LoadJob], Seconds], job: LoadJob) -> tuple[Seconds, float]:
    """Seconds, and the peak memory in GiB, in a process that does nothing else."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (arrangement, job))


def _measured(arrangement: Callable[[LoadJob], Seconds], job: LoadJob) -> tuple[Seconds, float]:
    if arrangement is diffusers:
        from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline  # noqa: F401  (not timed)
    seconds = arrangement(job)
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def make(folder: Path, family: str, dtype: str) -> LoadJob:
    """A model folder of random fp16 weights, and a LoRA for it that adapts LCM-LoRA's modules."""
    file = folder / "model.safetensors"
    write_random(file, FAMILIES[family])
    save_folder(load_model(str(file), torch.float16), folder / "model")
    file.unlink()
    torch.manual_seed(0)
    updates = initial(FAMILIES[family].modules(), RANK, 0)
    adapter = Adapter({name: LowRank(u.A, 1e-3 * torch.randn_like(u.B)) for name, u in updates.items()})
    recipe = Recipe(method="lcd", family=family, solver="lcm", steps=4, guidance_scale=1.0)
    save_adapter(folder / "lora.safetensors", adapter, recipe, torch.float16)
    return LoadJob(folder / "model", folder / "lora.safetensors", dtype)


def loads(config: LoadBenchmarkConfig) -> None:
    """Print the table of loads."""
    arrangements = (alone, plugged, diffusers, floor)
    results: dict[Callable[[LoadJob], Seconds], list[tuple[Seconds, float]]] = {one: [] for one in arrangements}
    with TemporaryDirectory() as folder:
        job = make(Path(folder), config.family, config.dtype)
        for _ in range(config.rounds):
            for arrangement in arrangements:
                results[arrangement].append(measured(arrangement, job))
    unit = median(seconds["load"] for seconds, _ in results[alone])
    print(f"{config.family}, {config.dtype}, rank {RANK}, {torch.get_num_threads()} threads\n")
    print("| arrangement | what | seconds | / the model alone | peak GiB |\n|---|---|---|---|---|")
    for arrangement, rows in results.items():
        for what in rows[0][0]:
            took = median(seconds[what] for seconds, _ in rows)
            peak = max(peak for _, peak in rows)
            print(f"| {arrangement.__name__} | {what} | {took:.2f} | {took / unit:.2f} | {peak:.2f} |")


def command(config: LoadBenchmarkConfig) -> None:
    """Print the parts of the time of a picture."""
    whole, imports, drawing = [], [], []
    with TemporaryDirectory() as folder:
        sampling = ["-m", "fewstep", "sample", "a red fox", "--out", folder]
        for _ in range(config.rounds):
            for arguments, found in ((sampling, whole), (["-c", CLASSES], imports)):
                begun = time.perf_counter()
                subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
                found.append(time.perf_counter() - begun)
    with Session() as session:
        for _ in range(config.rounds):
            begun = time.perf_counter()
            list(session.draw("a red fox"))
            drawing.append(time.perf_counter() - begun)
    total, classes, computing = (median(found) for found in (whole, imports, drawing))
    print("| part | seconds |\n|---|---|")
    print(f"| `fewstep sample`, from the command to the file | {total:.2f} |")
    print(f"| importing the model classes alone | {classes:.2f} |")
    print(f"| computing the picture, in a session that is open | {computing:.2f} |")
    print(f"| what is left | {total - classes - computing:.2f} |")


def run(config: LoadBenchmarkConfig) -> None:
    """Print the table."""
    (command if config.command else loads)(config)


if __name__ == "__main__":
    sys.exit(main_of(LoadBenchmarkConfig, run))
