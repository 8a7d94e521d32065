"""Comparisons and tunings, each measured once: found again by all that was asked, drawn by several processes."""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fewstep import __version__
from fewstep.assets import shipped_model
from fewstep.configs import CompareConfig, TuneConfig
from fewstep.evaluate.compare import compare
from fewstep.evaluate.rows import parse_row
from fewstep.evaluate.tune import tune
from fewstep.io import cache_dir, read_json, sha256_bytes, sha256_file
from fewstep.models.model import parts_sha256
from fewstep.models.references import parse_reference
from studies.results.config import LCM_STEPS, ResultsConfig

FORMAT = "3"  # raise when a finished measurement no longer holds
Job = CompareConfig | TuneConfig


class Finished(NamedTuple):
    """A comparison or a tuning that is done."""

    document: dict[str, Any]
    sheet: Path


def say(note: str) -> None:
    """Tell something on stderr."""
    print(f"note: {note}", file=sys.stderr, flush=True)


def measured(config: ResultsConfig, jobs: Sequence[Job]) -> list[Finished]:
    """All of them; with several processes their parts are drawn beforehand, the costliest first."""
    parts = [part for job in jobs if not is_finished(job) for part in parts_of(job)]
    if config.processes > 1:
        in_parallel([part for part in by_cost(parts) if not is_finished(part)], config.processes)
    return [finished(job) for job in jobs]


def in_parallel(parts: Sequence[Job], processes: int) -> None:
    """Finish all of them, in order, each by the next process that is free. The first error ends it."""
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=hush) as pool:
        waiting = {pool.submit(finished, part): part for part in parts}
        try:
            for done in as_completed(waiting):
                done.result()
                say(f"drawn: {title_of(waiting[done])}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():  # else they would finish what they are at
                process.terminate()
            raise


def hush() -> None:
    """No progress bars of several processes at once: errors come back, and notes come again when all is measured."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115


def share_cores(processes: int) -> None:
    """Give each process its share of the threads, this one as many: images are kept by the number of threads too."""
    if processes > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = max(1, cores // processes)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of those that will be started
        torch.set_num_threads(threads)


def parts_of(job: Job) -> list[Job]:
    """What can be drawn by itself: the rows of a comparison, the style's weights of a tuning."""
    if isinstance(job, CompareConfig):
        return [job.model_copy(update={"rows": (row,), "timing_rounds": 0}) for row in job.rows]
    of_style, _, others = job.grid.partition(":")
    return [job.model_copy(update={"grid": f"{weight}:{others or of_style}"}) for weight in of_style.split(",")]


def by_cost(parts: Sequence[Job]) -> list[Job]:
    """The costliest first, so that processes that take the next one when they are free end at nearly the same time."""
    return sorted(parts, key=cost, reverse=True)


def cost(job: Job) -> float:
    """Network evaluations, of all images, and where guidance is searched for those of the search."""
    if isinstance(job, TuneConfig):
        return float(len(job.grid.split(",")) * job.images * (job.steps or LCM_STEPS[1]))
    images, total = job.images * job.seed_sets, 0.0
    for row in job.rows:
        spec = parse_row(row)
        searched = len(job.guidance_grid.split(",")) * job.search_images if spec.best else 0
        total += spec.steps * (1 if spec.guidance_scale == 1 else 2) * (images + searched)
    return total


def finished(job: Job) -> Finished:
    """The job's document and sheet, measured now or found from an earlier run."""
    folder = place(job)
    if not is_finished(job):
        where = job.model_copy(update={"out": folder})
        if isinstance(where, CompareConfig):
            compare(where)
        else:
            tune(where)
    return Finished(read_json(folder / "table.json", "figures"), folder / "sheet.png")


def is_finished(job: Job) -> bool:
    """Whether it was measured before."""
    return (place(job) / "table.json").is_file()


def place(job: Job) -> Path:
    """The folder a job is kept in, by all that was asked for and the content of the files it names."""
    what = {
        "format": FORMAT,
        "fewstep": __version__,
        "kind": type(job).__name__,
        "asked": job.model_dump(mode="json", exclude={"out", "as_json", "device"}),
        "model": parts_sha256(shipped_model(job.model) or Path(job.model)),
        "loras": [sha256_file(parse_reference(lora).file) for lora in loras_of(job)],
        "reference": job.reference and sha256_file(job.reference),
    }
    return cache_dir() / "results" / sha256_bytes(json.dumps(what, sort_keys=True).encode())[:24]


def loras_of(job: Job) -> tuple[str, ...]:
    """The LoRAs of a job, as typed."""
    if isinstance(job, CompareConfig):
        return tuple(dict.fromkeys(lora for row in job.rows for lora in parse_row(row).loras))
    return job.style, job.acceleration


def title_of(job: Job) -> str:
    """A job in a few words."""
    return " ".join(job.rows) if isinstance(job, CompareConfig) else f"{job.style} {job.grid}"
