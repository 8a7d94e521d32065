"""Times merging two LoRAs of a family's full size, from two files to one, with fewstep and PEFT.

    python -m benchmarks.merge [--family sdxl] [--rank 64] [--svd-every 64] [--rounds 3]

Every arrangement runs in a process of its own, on random fp16 files. Ours reads both, combines them and saves, at the
summed rank or compressed back to the files' rank. PEFT puts both beside layers of the family's shapes (whose own
weights take no memory here, in its favour), calls add_weighted_adapter with `cat` or `svd`, and saves. `svd` decomposes
every whole matrix, so it runs on every n-th module only, and ours is timed on the same. The floor reads the bytes of
the inputs and writes those of the output, plainly.
"""

import resource
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fewstep.cli import main_of
from fewstep.configs import Config
from fewstep.families import FAMILIES, ModuleShape
from fewstep.lora.compress import compress
from fewstep.lora.files import load_adapter
from fewstep.lora.low_rank import Adapter, LowRank, combine
from fewstep.lora.recipe import Recipe
from fewstep.lora.writing import kohya_names, save_adapter

WEIGHTS = (1.0, 0.8)
RECIPE = Recipe(method="denoising")


class MergeBenchmarkConfig(Config):
    """Time merging two random LoRAs with fewstep and PEFT."""

    family: Literal["sd15", "sd21", "ssd-1b", "sdxl", "emoji"] = "sdxl"
    """The family whose modules are adapted."""
    rank: int = 64
    """Rank of both LoRAs."""
    svd_every: int = 64
    """PEFT's svd, and fewstep's for comparison, run only on every n-th module."""
    rounds: int = 3
    """Measured merges of each, every one in a fresh process. The median counts."""


class MergeJob(NamedTuple):
    """One merge. The two files and the result are in `folder`."""

    folder: Path
    family: str
    every: int  # merge every n-th module of the family
    rank: int

    @property
    def shapes(self) -> dict[str, ModuleShape]:
        """The modules that are merged."""
        return dict(list(FAMILIES[self.family].modules().items())[:: self.every])

    @property
    def inputs(self) -> list[Path]:
        """The two files."""
        return [self.folder / f"{i}.safetensors" for i in range(len(WEIGHTS))]

    @property
    def output(self) -> Path:
        """The merged file."""
        return self.folder / "merged.safetensors"


def write_inputs(job: MergeJob) -> None:
    """Write two files of random factors. Delta W has about the same size in every module."""
    torch.manual_seed(0)
    for path in job.inputs:
        modules = {}
        for name, shape in job.shapes.items():
            kernel, one = ((shape.kernel,) * 2, (1, 1)) if shape.kernel else ((), ())
            A = torch.randn(job.rank, shape.in_, *kernel) * 0.02
            modules[name] = LowRank(A, torch.randn(shape.out, job.rank, *one) * 0.02)
        save_adapter(path, Adapter(modules), RECIPE)


def read(job: MergeJob) -> list[tuple[float, Adapter]]:
    """Both files, weighted."""
    return [(w, load_adapter(path, job.shapes)[0]) for w, path in zip(WEIGHTS, job.inputs, strict=True)]


def ours(job: MergeJob) -> None:
    """fewstep: the exact sum."""
    save_adapter(job.output, Adapter(combine(read(job))), RECIPE)


def ours_compressed(job: MergeJob) -> None:
    """fewstep: the best approximation of the sum at the files' rank, and its loss."""
    modules, _ = compress(combine(read(job)), job.rank)
    save_adapter(job.output, Adapter(modules), RECIPE)


def peft_cat(job: MergeJob) -> None:
    """PEFT: the exact sum."""
    peft_merge(job, "cat")


def peft_svd(job: MergeJob) -> None:
    """PEFT: the best approximation of the sum at the files' rank."""
    peft_merge(job, "svd")


def peft_merge(job: MergeJob, combination_type: str) -> None:
    """Load the files as adapters, call add_weighted_adapter, and write the new adapter to a file."""
    from peft import LoraConfig, get_peft_model

    names, keys = [str(i) for i in range(len(WEIGHTS))], kohya_names(job.shapes, RECIPE.family)
    config = LoraConfig(r=job.rank, lora_alpha=job.rank, target_modules=list(keys.values()))
    network = nn.ModuleDict({keys[name]: weightless(shape) for name, shape in job.shapes.items()})
    model = get_peft_model(network, config, names[0], low_cpu_mem_usage=True)
    for name in names[1:]:
        model.add_adapter(name, config, low_cpu_mem_usage=True)
    layers = {key: model.base_model.model[key] for key in network}
    for name, path in zip(names, job.inputs, strict=True):
        tensors = load_file(path)
        for key, layer in layers.items():
            layer.lora_A[name].weight = nn.Parameter(tensors[f"{key}.lora_down.weight"].float(), requires_grad=False)
            layer.lora_B[name].weight = nn.Parameter(tensors[f"{key}.lora_up.weight"].float(), requires_grad=False)
    model.add_weighted_adapter(names, list(WEIGHTS), "merged", combination_type)
    merged = {}
    for key, layer in layers.items():
        merged[f"{key}.lora_down.weight"] = layer.lora_A["merged"].weight.detach().half().contiguous()
        merged[f"{key}.lora_up.weight"] = layer.lora_B["merged"].weight.detach().half().contiguous()
    save_file(merged, job.output)


def weightless(shape: ModuleShape) -> nn.Module:
    """A layer of this shape whose weight is a single zero, expanded to all places."""
    with torch.device("meta"):
        layer = nn.Conv2d(shape.in_, shape.out, shape.kernel) if shape.kernel else nn.Linear(shape.in_, shape.out)
    weight = torch.zeros(1).expand(layer.weight.shape)
    layer.weight, layer.bias = nn.Parameter(weight, requires_grad=False), None
    return layer


def floor(job: MergeJob) -> None:
    """Reading the inputs' bytes, and writing as many as the output has."""
    size = job.output.stat().st_size
    buffer = b"".join(path.read_bytes() for path in job.inputs)
    with (job.folder / "floor").open("wb", buffering=0) as file:
        while file.tell() < size:
            file.write(memoryview(buffer)[: size - file.tell()])


def nothing(job: MergeJob) -> None:
    """A process that only starts."""


def measured(arrangement: Callable[[MergeJob], None], job: MergeJob) -> tuple[float, float]:
    """Seconds of the merge, and peak resident GiB of its process, which does nothing else."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (arrangement, job))


def _measured(arrangement: Callable[[MergeJob], None], job: MergeJob) -> tuple[float, float]:
    if arrangement in (peft_cat, peft_svd):
        import peft  # noqa: F401  (its import is not timed)
    begun = time.perf_counter()
    arrangement(job)
    return time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(job: MergeJob, arrangements: tuple[Callable[[MergeJob], None], ...], rounds: int) -> None:
    """Print the table of these arrangements, which take turns on one pair of files."""
    job.folder.mkdir()
    measured(write_inputs, job)
    results: dict[Callable[[MergeJob], None], list[tuple[float, float]]] = {a: [] for a in arrangements}
    for _ in range(rounds):
        for arrangement in arrangements:
            results[arrangement].append(measured(arrangement, job))
    millions = sum(shape.lora_parameters(job.rank) for shape in job.shapes.values()) / 1e6
    print(f"\n{len(job.shapes)} modules, {millions:.1f} M parameters a file")
    print("| arrangement | seconds | peak GiB | seconds / fewstep's |\n|---|---|---|---|")
    for arrangement, rows in results.items():
        ratio = median(s / base for (s, _), (base, _) in zip(rows, results[arrangements[0]], strict=True))
        seconds, peak = median(s for s, _ in rows), max(p for _, p in rows)
        print(f"| {arrangement.__name__} | {seconds:.2f} | {peak:.2f} | {ratio:.2f} |")


def run(config: MergeBenchmarkConfig) -> None:
    """Print both tables: all modules, and the few that PEFT's svd can merge in reasonable time."""
    print(f"{config.family}, two LoRAs of rank {config.rank}, {torch.get_num_threads()} threads")
    with TemporaryDirectory() as folder:
        whole = MergeJob(Path(folder) / "whole", config.family, 1, config.rank)
        measure(whole, (ours, ours_compressed, peft_cat, floor, nothing), config.rounds)
        few = MergeJob(Path(folder) / "few", config.family, config.svd_every, config.rank)
        measure(few, (ours_compressed, peft_svd), config.rounds)


if __name__ == "__main__":
    sys.exit(main_of(MergeBenchmarkConfig, run))
