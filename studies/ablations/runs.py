"""The training runs, each a process, kept and found again."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.configs import DistillConfig, build, option_name
from fewstep.errors import FewstepError
from fewstep.evaluate.prompts import OF
from fewstep.io import cache_dir, sha256_bytes, write_bytes, write_json
from studies.ablations.config import AblationsConfig
from studies.ablations.groups import BASE, Group
from studies.pages import DOCS

SRC = DOCS.parent / "src"
STYLELESS = 3  # one caption in so many names no style, as all prompts do that runs are judged by
NOT_THE_RESULTS = {  # model's and data's hashes are
    *("model", "data", "out", "resume", "checkpoint_every", "log_every", "tracker", "sampler"),
}


class Run(NamedTuple):
    """One training run."""

    name: str
    config: DistillConfig

    @property
    def log(self) -> Path:
        """What it sentences."""
        return self.config.out / "log.txt"

    @property
    def mark(self) -> Path:
        """The file that says it is finished, and how fast it was."""
        return self.config.out / "finished.json"

    @property
    def draw_options(self) -> dict[str, Any]:
        """What to draw its pictures with."""
        if self.config.full:
            return {"model": str(self.config.out / "model")}
        return {"model": self.config.model, "lora": (str(self.config.out / "lora.safetensors"),)}

    @property
    def size(self) -> int:
        """Bytes of the LoRA, or of the network."""
        file = "model/unet/diffusion_pytorch_model.safetensors" if self.config.full else "lora.safetensors"
        return (self.config.out / file).stat().st_size


def drawings() -> Path:
    """Every third drawing of the emoji recipe's data set, a third of them told by name alone; written if not there."""
    folder = cache_dir() / "emoji" / "images"
    table, whole = folder / "ablations.jsonl", folder / "base.jsonl"
    if not table.is_file():
        if not whole.is_file():
            raise FewstepError(f"there is no {whole}", "run python -m recipes.emoji.dataset, or give --data")
        rows = [json.loads(line) for line in whole.read_text(encoding="utf-8").splitlines()[::3]]
        for row in rows[::STYLELESS]:
            row["text"] = row["text"].partition(OF)[2]
        write_bytes(table, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode())
    return table


def run_of(name: str, changes: dict[str, Any], config: AblationsConfig, data: Path, of: str) -> Run:
    """The run that differs from the base in `changes`. of: hash of the model and the data."""
    steps = changes.get("train_steps", config.train_steps)
    options = {"train_steps": steps, "batch_size": config.batch_size, "warmup": steps // 15} | BASE | changes
    options |= {"precision": config.precision, "device": config.device, "checkpoint_every": 50, "resume": True}
    described = build(DistillConfig, model=config.model, data=data, out=cache_dir() / "ablations", **options)
    what = described.model_dump(mode="json", exclude=NOT_THE_RESULTS)
    folder = sha256_bytes(of.encode(), json.dumps(what, sort_keys=True).encode())[:16]
    return Run(name, described.model_copy(update={"out": described.out / folder}))


def runs_of(name: str, group: Group, config: AblationsConfig, data: Path, of: str) -> dict[str, Run]:
    """The runs of a group by their names in it."""
    return {
        run: run_of(f"{name}: {run}" if changes else "base", changes, config, data, of)
        for run, changes in group.runs.items()
    }


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
        f" under {cache_dir() / 'ablations'}")  # fmt: skip
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
