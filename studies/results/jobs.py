"""Comparisons, each measured once and found again by all that was asked and what measures; drawn in parallel."""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fewstep.assets import shipped_model
from fewstep.configs import CompareConfig
from fewstep.evaluate import compare as comparing
from fewstep.evaluate.key import source_sha256
from fewstep.evaluate.prompts import prompts_for
from fewstep.evaluate.row_pictures import Portion
from fewstep.evaluate.rows import loras_of, parse_row
from fewstep.evaluate.setup import draw_part
from fewstep.events import Event, Note, Progress, telling
from fewstep.io import cache_dir, read_json, sha256_bytes, sha256_file
from fewstep.models.model import parts_sha256
from fewstep.models.references import parse_reference
from studies.results.config import ResultsConfig


class Finished(NamedTuple):
    """A comparison that is done."""

    document: dict[str, Any]
    sheet: Path


def say(note: str) -> None:
    """Tell something on stderr, with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {note}", file=sys.stderr, flush=True)


def measured(config: ResultsConfig, jobs: Sequence[CompareConfig]) -> list[Finished]:
    """All of them; with several processes their batches are drawn beforehand."""
    draw(config, [job for job in jobs if not is_finished(job)])
    return [finished(job) for job in jobs]


def draw(config: ResultsConfig, jobs: Sequence[CompareConfig]) -> None:
    """Draw the jobs' batches and look at them, each process its part of every row. The first error ends it."""
    n = config.processes
    if n < 2 or not jobs:
        return
    with ProcessPoolExecutor(n, multiprocessing.get_context("spawn"), initializer=deaf) as pool:
        waiting = [pool.submit(draw_parts, jobs, (number, n)) for number in range(n)]
        try:
            for done in as_completed(waiting):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():  # else they would finish what they are at
                process.terminate()
            raise


def draw_parts(jobs: Sequence[CompareConfig], part: Portion) -> None:
    """This part of every job; the first part's process tells what it has done."""
    with telling(Log(part)):
        for job in jobs:
            draw_part(job, tuple(map(parse_row, job.rows)), part)


class Log:
    """A sink that tells each piece of work that is done; of several processes only the first one's."""

    def __init__(self, part: Portion) -> None:
        self.part, self.begun = part, dict[str, float]()

    def __call__(self, event: Event) -> None:
        """Work that took a second or more is worth a line."""
        if self.part[0] or isinstance(event, Note) or not isinstance(event, Progress):
            return
        begun = self.begun.setdefault(event.work, time.monotonic())
        if event.done == event.total:
            seconds = time.monotonic() - self.begun.pop(event.work, begun)
            if seconds >= 1:
                say(f"{event.work}, {event.total} {event.unit}, part 1 of {self.part[1]}: {seconds:.0f} s")


def deaf() -> None:
    """Ctrl-C is for the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def share_cores(processes: int) -> None:
    """Give each process its share of the threads, this one as many: images are kept by the number of threads too."""
    if processes > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = max(1, cores // processes)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of those that will be started
        torch.set_num_threads(threads)


def finished(job: CompareConfig) -> Finished:
    """The job's document and sheet, measured now or found from an earlier run."""
    folder = place(job)
    if not is_finished(job):
        comparing.compare(job.model_copy(update={"out": folder}))
    return Finished(read_json(folder / "table.json", "figures"), folder / "sheet.png")


def is_finished(job: CompareConfig) -> bool:
    """Whether it was measured before."""
    return (place(job) / "table.json").is_file()


def place(job: CompareConfig) -> Path:
    """The folder a job is kept in, by all that was asked, the content of the files it names, and what measures it.

    The words of the page are no part of it, so that they can change without a new measurement.
    """
    loras = dict.fromkeys(lora for row in job.rows for lora in loras_of(parse_row(row), job.model))
    what = {
        "asked": job.model_dump(mode="json", exclude={"out", "as_json", "device"}),
        "model": parts_sha256(shipped_model(job.model) or Path(job.model)),
        "loras": [sha256_file(parse_reference(lora).file) for lora in loras],
        "prompts": [list(prompt) for prompt in prompts_for(job.prompt_file, job.reference).prompts],
        "reference": job.reference and sha256_file(Path(job.reference)),
        "source": source_sha256(Path(comparing.__file__)),
    }
    return cache_dir() / "results" / sha256_bytes(json.dumps(what, sort_keys=True).encode())[:24]
