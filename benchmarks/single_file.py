"""Times loading a single-file checkpoint of a family's full size, and drawing with it, in fewstep and diffusers.

    python -m benchmarks.single_file [--family sdxl] [--size 256] [--rounds 3]

Every load runs in a process of its own, on a file of random fp16 weights in the original layout. diffusers' loader
fetches configs and tokenizer from the hub; here it gets a folder with them, which fewstep wrote before. Afterwards all
weights of both are compared, and one picture that each draws with one DDIM step from the same noise. This checks that
every weight is in its place. The floor only reads the file's bytes.
"""

import hashlib
import os
import resource
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fewstep.cli import main_of
from fewstep.configs import Config, Where, build
from fewstep.diffusion.sampler import ImageNoise
from fewstep.engines.torch import TorchEngine
from fewstep.families import FAMILIES
from fewstep.families.single_file import TEXT
from fewstep.models.load import DTYPES, load_model
from fewstep.models.random_weights import write_random
from fewstep.models.single_file import save_folder
from fewstep.session import Session

PROMPT = "a photo of a cat"


class SingleFileConfig(Config):
    """Load a single file of random weights and draw with it, in fewstep and diffusers."""

    family: Literal["sd15", "sd21", "ssd-1b", "sdxl"] = "sd15"
    """The family of the model."""
    size: int = 256
    """Side of the picture that is drawn, in pixels."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision of the networks."""
    rounds: int = 3
    """Measured loads of each, every one in a fresh process. The median counts."""


class SingleFileJob(NamedTuple):
    """One load."""

    file: Path
    folder: Path  # the same model in diffusers' layout, for its configs and tokenizer
    family: str
    size: int
    dtype: torch.dtype


class LoadMeasures(NamedTuple):
    """The measures of a load, and the picture drawn after it."""

    load_s: float
    draw_s: float
    peak_gib: float
    weights: str  # hash of all networks' weights and their names
    pixels: Tensor | None


def hash_of_weights(parts: Any) -> str:
    """SHA-256 of the networks' weights and their names. parts: an object with the networks as attributes."""
    networks = [getattr(parts, name, None) for name in ("unet", "vae", *TEXT)]
    total = hashlib.sha256()
    for network in networks:
        for key, tensor in sorted(network.state_dict().items()) if network is not None else ():
            total.update(key.encode())
            total.update(tensor.contiguous().view(torch.uint8).numpy())
    return total.hexdigest()


def ours(job: SingleFileJob) -> tuple[float, Any, Callable[[], Tensor]]:
    """fewstep."""
    begun = time.perf_counter()
    where = build(Where, model=str(job.file), loras=())
    session = Session.on(TorchEngine(load_model(str(job.file), job.dtype)), where)
    options: dict[str, Any] = {"solver": "ddim", "steps": 1, "guidance_scale": 1, "width": job.size, "height": job.size}
    took = time.perf_counter() - begun
    return took, session.engine.model, lambda: next(session.draw(PROMPT, **options)).pixels


def diffusers(job: SingleFileJob) -> tuple[float, Any, Callable[[], Tensor]]:
    """diffusers' from_single_file."""
    import diffusers as library

    two = len(FAMILIES[job.family].text_encoders) == 2
    kind = library.StableDiffusionXLPipeline if two else library.StableDiffusionPipeline
    begun = time.perf_counter()
    pipe = kind.from_single_file(str(job.file), config=str(job.folder), torch_dtype=job.dtype)
    took = time.perf_counter() - begun
    pipe.scheduler = library.DDIMScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True
    )
    pipe.set_progress_bar_config(disable=True)
    noise = ImageNoise([0], (4, job.size // 8, job.size // 8), torch.device("cpu"))().to(job.dtype)
    how = {"num_inference_steps": 1, "guidance_scale": 1.0, "width": job.size, "height": job.size, "output_type": "pt"}
    return took, pipe, lambda: pipe(PROMPT, latents=noise, **how).images[0].float() * 2 - 1


def floor(job: SingleFileJob) -> tuple[float, None, None]:
    """Reading the file's bytes."""
    begun = time.perf_counter()
    with job.file.open("rb", buffering=0) as file:
        while file.read(2**24):
            pass
    return time.perf_counter() - begun, None, None


def measured(arrangement: Callable[[SingleFileJob], Any], job: SingleFileJob) -> LoadMeasures:
    """The measures, in a process that does nothing else."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (arrangement, job))


def _measured(arrangement: Callable[[SingleFileJob], Any], job: SingleFileJob) -> LoadMeasures:
    if arrangement is diffusers:
        from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline  # noqa: F401  (not timed)
    load_s, parts, draw = arrangement(job)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    begun = time.perf_counter()
    with torch.no_grad():
        pixels = draw() if draw else None
    return LoadMeasures(load_s, time.perf_counter() - begun, peak, hash_of_weights(parts), pixels)


def run(config: SingleFileConfig) -> None:
    """Print the table."""
    with TemporaryDirectory() as folder:
        job = SingleFileJob(
            Path(folder) / "model.safetensors", Path(folder) / "model", config.family, config.size, DTYPES[config.dtype]
        )
        weights = write_random(job.file, FAMILIES[config.family])
        save_folder(load_model(str(job.file), torch.float16), job.folder)
        os.sync()  # so that no load waits for the disk
        print(f"{config.family}, {weights / 1e6:.0f} M weights, {job.file.stat().st_size / 2**30:.2f} GiB,"
              f" {config.size} px, {config.dtype}, {torch.get_num_threads()} threads")  # fmt: skip
        arrangements = (ours, diffusers, floor)
        results: dict[Callable[[SingleFileJob], Any], list[LoadMeasures]] = {a: [] for a in arrangements}
        for _ in range(config.rounds):
            for arrangement in arrangements:
                results[arrangement].append(measured(arrangement, job))
    print("| arrangement | load s | peak GiB after loading | one step and decoding, s |\n|---|---|---|---|")
    for arrangement, rows in results.items():
        load, draw = (median(row[i] for row in rows) for i in (0, 1))
        print(f"| {arrangement.__name__} | {load:.2f} | {max(r.peak_gib for r in rows):.2f} | {draw:.2f} |")
    mine, theirs = results[ours][0].pixels, results[diffusers][0].pixels
    assert mine is not None
    assert theirs is not None
    same = results[ours][0].weights == results[diffusers][0].weights
    print(f"all weights equal, to the bit: {'yes' if same else 'NO'}")
    print(f"largest difference of the pictures: {float((mine - theirs).abs().max()):.2g}"
          f" (their spread: {float(mine.std()):.2g})")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main_of(SingleFileConfig, run))
