"""The progress events and files of a training run besides its weights: metrics.jsonl, config.json."""

import importlib.util
import json
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from fewstep.assets import ACCELERATION, MODEL, STYLES
from fewstep.configs import TrainingConfig
from fewstep.data.cache.processes import this_process
from fewstep.errors import FewstepError, UsageError, option
from fewstep.events import Preview, Progress, note, tell
from fewstep.io import append_line, explaining, read_json, refuse_file, write_bytes, write_json
from fewstep.locks import take
from fewstep.sheets import ScoredSheet
from fewstep.training.same_run import PROCESSES, check_same, named_checkpoint, run_of

CONFIG = "config.json"  # in --out
LOCK = "run.lock"  # in --out while a run writes there
METRICS, QUALITY = "metrics.jsonl", "quality.jsonl"  # in --out: lines of the training itself, and of its previews


def check_folder(config: TrainingConfig) -> None:
    """Raise UsageError unless config.out is free for a new run, or holds the run that --resume continues.

    It is called before anything is loaded. The loop checks again when it holds the folder.
    """
    if config.tracker and importlib.util.find_spec(config.tracker) is None:
        raise FewstepError(
            f"{option('tracker')} {config.tracker}: its package is not installed", f"pip install {config.tracker}"
        )
    refuse_file(config.out)
    if (config.out / LOCK).exists():  # a run is in progress, or was killed
        with only_run(config):
            pass
    check_same_run(config)


@contextmanager
def only_run(config: TrainingConfig) -> Iterator[None]:
    """Make config.out and hold it for this run. Raises FewstepError while another run holds it."""
    path = config.out / LOCK
    with explaining(path):
        config.out.mkdir(parents=True, exist_ok=True)
        lock = take(path)
    if lock is None:
        with suppress(OSError):
            other = path.read_text(encoding="utf-8")
        raise FewstepError(
            f"another run writes to {config.out} ({other or 'a process on this machine'})",
            f"wait until it ends, stop it, or choose another {option('out')}",
        )
    try:
        lock.write(f"process {os.getpid()} on {platform.node()}")
        yield
    finally:
        lock.remove()


def check_same_run(config: TrainingConfig) -> None:
    """Raise UsageError if config.out holds a run, unless it is the run that `config` continues.

    It is one too for another run than the one that --resume-from names.
    """
    path, values = config.out / CONFIG, as_stored(config)
    if path.exists() and not config.resume:
        raise UsageError(
            f"{config.out} already holds a run",
            f"add {option('resume')} to continue it, or choose another {option('out')}",
        )
    checkpoint = named_checkpoint(config)
    if checkpoint is not None and not path.exists():
        path = run_of(checkpoint) / CONFIG
    if path.exists():
        before = with_whole_paths(read_json(path, "the run's config"), config.places)
        check_same(config, values, before, path.parent)


def write_config(config: TrainingConfig) -> None:
    """Save the config with the run's results."""
    write_json(config.out / CONFIG, as_stored(config))


def as_stored(config: TrainingConfig) -> dict[str, Any]:
    """The config as in config.json, in JSON's types, and the number of processes."""
    values = with_whole_paths(json.loads(config.model_dump_json()), config.places)
    return values | {PROCESSES: this_process().of}


def with_whole_paths(values: dict[str, Any], places: Set[str]) -> dict[str, Any]:
    """These values. A value of `places` that names something on this machine becomes its whole path."""
    whole = {}
    for name in places & values.keys():
        value = values[name]
        shipped = name != "data" and value in (MODEL, ACCELERATION, *STYLES)
        if value is not None and not shipped and (path := Path(value).expanduser()).exists():
            whole[name] = str(path.resolve())
    return values | whole


@contextmanager
def stop_requests(accelerator: Accelerator) -> Iterator[Callable[[], bool]]:
    """A function that returns whether any process has received Ctrl-C or a termination signal.

    A second signal interrupts at once.
    """
    asked = threading.Event()

    def handle(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    def stopped() -> bool:
        if accelerator.num_processes == 1:
            return asked.is_set()
        flag = torch.tensor(float(asked.is_set()), device=accelerator.device)
        return bool(accelerator.reduce(flag, "sum") > 0)

    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class TrainingProgress:
    """The progress of one run, its metrics.jsonl and its trackers."""

    def __init__(self, config: TrainingConfig, step: int, accelerator: Accelerator) -> None:
        self.config, self.accelerator = config, accelerator
        self.path = config.out / METRICS
        self.images = config.batch_size * config.accumulate * accelerator.num_processes
        self.start, self.first = time.perf_counter(), step
        self.values: dict[str, list[float]] = {}  # values of the steps since the last line
        self.logging = True  # whether the last line could be written
        self.detail = ""  # the last line's values, in words
        self._tell(step)

    def __enter__(self) -> "TrainingProgress":
        if self.accelerator.is_main_process:
            for name in (METRICS, QUALITY):
                keep_lines_until(self.config.out / name, self.first)
        if self.config.tracker:
            values = json.loads(self.config.model_dump_json())
            plain = {name: x if isinstance(x, str | int | float) else str(x) for name, x in values.items()}
            self.accelerator.init_trackers(self.config.project, plain)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.config.tracker:
            self.accelerator.end_training()

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Record a finished step. Every log_every steps, write the means since the last line."""
        for key, value in values.items():
            self.values.setdefault(key, []).append(value)
        self._tell(step)
        if step % self.config.log_every and step != self.config.train_steps:
            return
        rate = (step - self.first) * self.images / (time.perf_counter() - self.start)
        means = {key: sum(of_it) / len(of_it) for key, of_it in self.values.items()}
        line = {"step": step, **means, "images_per_s": rate}
        self.values = {}
        self.detail = ", ".join(f"{key}={line[key]:.4g}" for key in ("loss", "images_per_s") if key in line)
        if self.accelerator.is_main_process:
            self._log(json.dumps(line))
        if self.config.tracker:
            self.accelerator.log(line, step=step)

    def preview(self, step: int, look: Callable[[int], ScoredSheet | None]) -> None:
        """Show what `look` gives after `step` steps, if it gives anything. Its time does not count in images_per_s."""
        began = time.perf_counter()
        if (previewed := look(step)) is not None:
            self.show(step, previewed)
        self.start += time.perf_counter() - began

    def _log(self, line: str) -> None:
        """Add a line to the metrics. If that cannot be done, as on a full disk, training goes on without it."""
        try:
            append_line(self.path, line)
        except FewstepError as error:
            if self.logging:
                note(f"{error.message.marked}; training goes on, and lines are missing there")
            self.logging = False
        else:
            self.logging = True

    def show(self, step: int, previewed: ScoredSheet) -> None:
        """Report a preview and its scores after `step` steps. Called in the main process."""
        tell(Preview((0,), step, self.config.train_steps, lambda: [previewed.image]))
        if not self.config.tracker:
            return
        self.accelerator.log(dict(previewed.values), step=step)
        tracker = self.accelerator.get_tracker(self.config.tracker)
        if self.config.tracker == "tensorboard":
            tracker.log_images({"previews": np.asarray(previewed.image)[None]}, step, dataformats="NHWC")
        elif hasattr(tracker, "log_images"):
            tracker.log_images({"previews": [previewed.image]}, step)

    def _tell(self, step: int) -> None:
        """Send a progress event, once for all processes."""
        if self.accelerator.is_main_process:
            tell(Progress("training", step, self.config.train_steps, "step", self.detail))


def keep_lines_until(path: Path, step: int) -> None:
    """Drop the lines of a file such as metrics.jsonl that a resumed run will write again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if 0 <= step_of(line) <= step]
        write_bytes(path, "".join(line + "\n" for line in kept).encode())


def step_of(line: str) -> int:
    """The step of a line of such a file; -1 for a half-written line of a killed run."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return -1
