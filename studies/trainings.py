"""Trainings of the studies, each a process, kept and found again."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fewstep.configs import DistillConfig, option_name
from fewstep.data.prompts import OF
from fewstep.errors import FewstepError
from fewstep.io import cache_dir, sha256_bytes, sha256_file, write_bytes, write_json
from fewstep.models.model import Model, parts_sha256
from studies.pages import DOCS

SRC = DOCS.parent / "src"
STYLELESS = 2  # one caption in so many names no style, as all prompts do that runs are judged by
NOT_THE_RESULTS = {  # model's and data's hashes are
    *("model", "data", "out", "resume", "checkpoint_every", "log_every", "tracker", "project", "sampler"),
    *("preview_every", "preview_prompts", "preview_images", "preview_clip", "push_to_hub"),
}


class Run(NamedTuple):
    """One training run."""

    name: str
    config: DistillConfig

    @property
    def log(self) -> Path:
        """What it writes."""
        return self.config.out / "log.txt"

    @property
    def mark(self) -> Path:
        """The file that says it is finished, and how fast it was."""
        return self.config.out / "finished.json"

    @property
    def lora(self) -> Path:
        """What it leaves."""
        return self.config.out / "lora.safetensors"


def drawings() -> Path:
    """Every third drawing of the emoji recipe's data set, half of them captioned by name alone; written if changed."""
    folder = cache_dir() / "emoji" / "images"
    table, whole = folder / "ablations.jsonl", folder / "base.jsonl"
    if not whole.is_file():
        raise FewstepError(f"there is no {whole}", "run python -m recipes.emoji.dataset, or give --data")
    rows = [json.loads(line) for line in whole.read_text(encoding="utf-8").splitlines()[::3]]
    for row in rows[::STYLELESS]:
        row["text"] = row["text"].partition(OF)[2] or row["text"]
    content = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()
    if not table.is_file() or table.read_bytes() != content:
        write_bytes(table, content)
    return table


def placed(config: DistillConfig, of: str) -> DistillConfig:
    """The training in its own folder, named for all that decides the result. of: hash of the model and the data."""
    what = config.model_dump(mode="json", exclude=NOT_THE_RESULTS, exclude_defaults=True)  # a new option moves none
    name = sha256_bytes(of.encode(), json.dumps(what, sort_keys=True).encode())[:16]
    return config.model_copy(update={"out": config.out / name})


def inputs(model: Model, data: Path) -> str:
    """The hash of what trainings start from."""
    return f"{parts_sha256(model.path)} {sha256_file(data) if data.is_file() else data}"


def command(config: DistillConfig) -> list[str]:
    """The run as a command."""
    typed = [sys.executable, "-m", "fewstep", "distill"]
    for field, value in config.model_dump(exclude_unset=True).items():
        typed += [option_name(field)] if value is True else [option_name(field), str(value)]
    return typed


def train(runs: Sequence[Run], processes: int) -> None:
    """Train those that are not finished, so many at a time; when stopped, each keeps a checkpoint to go on from."""
    waiting = [run for run in runs if not run.mark.is_file()]
    say(f"{len(runs)} runs, {len(runs) - len(waiting)} of them finished before; each has a log.txt in its folder"
        f" under {cache_dir()}")  # fmt: skip
    running: dict[subprocess.Popen[bytes], tuple[Run, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                run = waiting.pop(0)
                running[started(run)] = run, time.monotonic()
            ended = [child for child in running if child.poll() is not None]
            for child in ended:
                run, since = running.pop(child)
                say(f"[{len(runs) - len(waiting) - len(running)}/{len(runs)}] "
                    + ending(run, child.returncode, time.monotonic() - since))  # fmt: skip
            time.sleep(0 if ended else 0.2)
    finally:
        for child in running:
            child.terminate()
        for child in running:
            child.wait()


def started(run: Run) -> subprocess.Popen[bytes]:
    """Its process; Ctrl-C reaches it through `train` alone, since a second signal would not let it save."""
    run.config.out.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"}
    with run.log.open("ab") as log:
        return subprocess.Popen(
            command(run.config), env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def ending(run: Run, code: int, seconds: float) -> str:
    """How it ended, in a line; if well, it is marked as finished, and its checkpoints go."""
    if code:
        return f"{run.name}: failed with exit code {code}, see {run.log}"
    last = json.loads((run.config.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    shutil.rmtree(run.config.out / "checkpoints", ignore_errors=True)
    write_json(run.mark, {"images_per_s": last["images_per_s"]})
    return f"{run.name}: {run.config.train_steps} steps, {last['images_per_s']:.1f} images/s, {seconds:.0f} s"


def say(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)
