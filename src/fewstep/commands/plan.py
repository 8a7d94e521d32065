"""`fewstep plan`: what a run will need, before any weight is read, and what to change so that it fits."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fewstep.commands.result import Result
from fewstep.configs import AdapterConfig, DistillConfig, FinetuneConfig, PlanConfig, build
from fewstep.errors import UsageError, number_of, option
from fewstep.events import doing
from fewstep.io import cache_dir
from fewstep.models.load import pick_device
from fewstep.training.adapt import training_samples
from fewstep.training.forecast import forecast
from fewstep.training.loop import check_precision
from fewstep.training.methods import Method, method_of
from fewstep.training.methods.denoising import Denoising
from fewstep.training.packages import check_packages
from fewstep.training.rates import steps_in

PROBE_S = 8.0  # for how long the operations of a step are timed
OWN = ("training", "samples", "memory", "probe", "as_json")  # options of plan itself
GIB = 2**30


def plan(config: PlanConfig) -> Result:
    """Memory by phase, disk, time of a step and of the run; changes with which it fits, if it does not."""
    run, kind = run_of(config)
    check_precision(run)
    check_packages(run)
    samples = samples_of(config, run)
    with doing("taking a step without values"):
        found = forecast(run, kind, samples, PROBE_S if config.probe else None)
    memory = config.memory or memory_of(pick_device(run.device))
    changes = None if found.peak <= memory else fitting(run, kind, memory)
    steps = steps_in(run, samples)
    document = {
        "memory_bytes": found.memory,
        "peak_bytes": found.peak,
        "memory_limit_bytes": memory,
        "fits": found.peak <= memory,
        "changes": changes,
        "disk_bytes": found.disk,
        "disk_free_bytes": {"cache": free_bytes(cache_dir()), "out": free_bytes(config.out)},
        "trained_values": found.trained,
        "step_flops": found.flops,
        "step_s": found.step_s,
        "run_s": None if found.step_s is None else found.step_s * steps,
    }
    return Result(document, text_of(document, steps))


def run_of(config: PlanConfig) -> tuple[AdapterConfig, type[Method]]:
    """The config of the run, and its method."""
    if config.training not in (("distill",), ("finetune",)):
        typed = f", not by {' '.join(config.training)}" if config.training else ""
        raise UsageError(f"plan is followed by distill or finetune{typed}", "type plan before the command of the run")
    given = config.model_dump(exclude_unset=True, exclude=set(OWN)) | {"out": config.out}
    if config.training == ("finetune",):
        return build(FinetuneConfig, **({"data": Path()} | given)), Denoising
    if config.data is None and not config.synthetic:
        given["data"] = Path()
    run = build(DistillConfig, **given)
    return run, method_of(run)


def samples_of(config: PlanConfig, run: AdapterConfig) -> int:
    """How many images the run will have."""
    if config.samples is not None:
        return config.samples
    if config.data is None:
        return config.images or 1000
    return len(training_samples(run))


def fitting(run: AdapterConfig, kind: type[Method], memory: int) -> dict[str, Any] | None:
    """The first changes with which the run's peak is at most `memory` bytes, by field; None if there are none."""
    for changes in changes_of(run):
        changed = run.model_copy(update=changes)
        try:
            check_packages(changed)
        except UsageError:
            continue
        if forecast(changed, kind, 1).peak <= memory:
            return changes
    return None


def changes_of(run: AdapterConfig) -> Iterator[dict[str, Any]]:
    """Changes that take less and less memory. Those that cost the result nothing come first."""
    changes: dict[str, Any] = {}
    if not run.gradient_checkpointing:
        changes["gradient_checkpointing"] = True
        yield dict(changes)
    if run.batch_size > 1:
        changes |= {"batch_size": 1, "accumulate": run.accumulate * run.batch_size}
        yield dict(changes)
    if not run.full:
        for storage in ("bf16", "int8", "nf4"):
            if run.frozen_weights == "auto":
                changes["frozen_weights"] = storage
                yield dict(changes)
    if run.optimizer == "adamw":
        changes["optimizer"] = "adamw-8bit"
        yield dict(changes)


def memory_of(device: torch.device) -> int:
    """The memory of a GPU, or of this machine, in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_bytes(path: Path) -> int:
    """The free bytes of the disk on which a path is, or will be."""
    there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free


def text_of(document: dict[str, Any], steps: int) -> str:
    """The plan for people. steps: of the run."""
    memory, disk, peak = document["memory_bytes"], document["disk_bytes"], document["peak_bytes"]
    phases = ", ".join(f"{phase} {gib(size)}" for phase, size in memory.items())
    lines = [
        f"memory    {gib(peak)} at most ({phases})",
        f"disk      {gib(sum(disk.values()))} ({', '.join(f'{what} {gib(size)}' for what, size in disk.items())})",
        f"trained   {document['trained_values']:,} values",
        f"a step    {document['step_flops'] / 1e12:.3g} TFLOP" + in_seconds(document, steps),
    ]
    if not document["fits"]:
        lines.append(f"It does not fit into {gib(document['memory_limit_bytes'])}. {advice(document['changes'])}")
    for place, needed in (("cache", disk["cache"]), ("out", disk["checkpoints"] + disk["result"])):
        if needed > document["disk_free_bytes"][place]:
            lines.append(f"The disk of {place} has only {gib(document['disk_free_bytes'][place])} free.")
    return "\n".join(lines)


def in_seconds(document: dict[str, Any], steps: int) -> str:
    """The time of a step and of the run, if they were measured."""
    if document["step_s"] is None:
        return f" ({option('probe')} says how long it takes)"
    return f", {document['step_s']:.3g} s; {number_of(steps, 'step')} {document['run_s'] / 3600:.3g} h"


def advice(changes: dict[str, Any] | None) -> str:
    """What to change."""
    if changes is None:
        return f"No options make it fit: take a smaller {option('size')}, or another machine."
    words = (option(name) if value is True else f"{option(name)} {value}" for name, value in changes.items())
    return f"It fits with {' '.join(words)}"


def gib(size: float) -> str:
    """A number of bytes for people."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"
