"""Write docs/ablations.md, what each choice in a distillation is worth on a small model: `python -m studies.ablations`.

Runs are kept under $FEWSTEP_CACHE/ablations and pictures as compare keeps its own: an interrupted command goes on.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from cyclopts import Parameter
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from fewstep import __version__
from fewstep.assets import MODEL
from fewstep.cli import main_of
from fewstep.configs import Config, Device, DistillConfig, Precision, build, option_name
from fewstep.data.cache import encode
from fewstep.data.folder import read_items
from fewstep.diffusion.schedule import skipping_grid
from fewstep.errors import FewstepError, UsageError
from fewstep.evaluate.drawn import Drawn
from fewstep.evaluate.prompts import OF, Prompt, bare_prompts
from fewstep.evaluate.report import text_table
from fewstep.evaluate.sheets import Row, grid, small_jpeg
from fewstep.io import cache_dir, read_json, sha256_bytes, sha256_file, write_bytes, write_json
from fewstep.metrics.estimate import Estimate, estimate
from fewstep.metrics.frechet import Statistics
from fewstep.models.load import load_model, pick_device
from fewstep.models.model import parts_sha256
from studies.lab import Lab, base_styles, drawings_of, take
from studies.pages import DOCS, template

SRC = DOCS.parent / "src"
CERTAIN = 2  # standard errors
CHANCE = 0.0455  # of a difference of nothing to be larger than that
STYLELESS = 3  # one caption in so many names no style, as all prompts do that runs are judged by
STEPS = 4  # of the sampler
TEACHER_STEPS = 100
SHOWN, CELL = 8, 128  # pictures in a row of a sheet, and their pixels
ROW_BYTES = 11_000  # of a sheet's file
BASE: dict[str, Any] = {
    "rank": 16,
    "guidance_scale": 4.0,
    "psi": "ddim",
    "k": 20,
    "target": "ema",
    "target_decay": 0.95,
    "loss": "huber",
    "huber_c": 0.001,
    "learning_rate": 1e-3,
    "decay": "cosine",
    "ema": 0.98,
    "seed": 0,
}
NEVER_MOVES = 1 - 1e-12  # decay of an average that stays the network it began as: the one without a LoRA
NOT_THE_RESULTS = {  # model's and data's hashes are
    *("model", "data", "out", "resume", "checkpoint_every", "log_every", "tracker", "sampler"),
}


class AblationsConfig(Config):
    """Measure what each choice in a distillation is worth: runs of one budget, each beside a shared base run."""

    model: str = MODEL
    """The teacher, as `fewstep distill` takes it."""
    data: Path | None = None
    """What to train on; by default every third drawing of the emoji recipe's data set, a third naming no style."""
    groups: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = ()
    """Only these: guidance, target, loss, psi, k, focus, weighting, grid, method, rank, length, seed."""
    train_steps: Annotated[int, Field(ge=1)] = 150
    """Optimiser steps of a run."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Samples of a step, and pictures drawn at once."""
    long: bool = False
    """Train the base run twice as long, too."""
    processes: Annotated[int, Field(ge=1)] = 1
    """Runs trained at a time, of one thread each."""
    images: Annotated[int, Field(ge=8)] = 256
    """Pictures for each line, of the same prompts and noise."""
    precision: Precision = "bf16"
    """Of the networks' arithmetic in training; pictures are drawn in fp32."""
    device: Device = "cpu"
    """Where to compute."""
    out: Path = DOCS / "ablations.md"
    """The page; the figures stand beside it as .json, the sheets in pictures/."""


class Group(NamedTuple):
    """Runs that differ in one choice."""

    title: str
    text: str  # what is chosen between
    runs: dict[str, dict[str, Any]]  # name: what differs from the base run, which comes first
    also: tuple[int, ...] = ()  # steps of the sampler beside STEPS
    pairs: tuple[tuple[str, str], ...] = ()  # runs to compare beside the base: this one to that one


class Run(NamedTuple):
    """One training run."""

    name: str
    config: DistillConfig

    @property
    def log(self) -> Path:
        """What it said."""
        return self.config.out / "log.txt"

    @property
    def mark(self) -> Path:
        """The file that says it is finished, and how fast it was."""
        return self.config.out / "finished.json"

    @property
    def drawn_with(self) -> dict[str, Any]:
        """What to draw its pictures with."""
        if self.config.full:
            return {"model": str(self.config.out / "model")}
        return {"model": self.config.model, "lora": (str(self.config.out / "lora.safetensors"),)}

    @property
    def size(self) -> int:
        """Bytes of the LoRA, or of the network."""
        file = "model/unet/diffusion_pytorch_model.safetensors" if self.config.full else "lora.safetensors"
        return (self.config.out / file).stat().st_size


def all_groups(steps: int, long: bool = False) -> dict[str, Group]:
    """The ablations by name. steps: of the base run's training."""
    widths = {f"Huber, c = {c:g}": {"huber_c": c} for c in (0.01, 0.1)}
    ranks = {f"rank {rank}": {"rank": rank} for rank in (1, 4, 8, 32, 64)}
    lengths = {steps // 4: "a quarter", steps // 2: "a half"} | ({2 * steps: "twice"} if long else {})
    rates, targets = (3e-4, 1e-4), {"EMA 0.95": "ema", "student": "student"}
    slower = {
        f"{name}, rate {rate:g}": {"target": target, "learning_rate": rate}
        for rate in rates
        for name, target in targets.items()
    }
    grids = {k: f"k = {k}: {len(skipping_grid(k))} timesteps" for k in (20, 5, 10, 50, 100)}
    return {
        "guidance": Group(
            "Guidance",
            "One guidance scale for all samples, or one drawn for each without telling the student, as the published"
            " training script does: its w of 5 to 15 is a scale of 6 to 16. A wide range has another mean, so a fixed"
            " scale of that mean stands beside it.",
            {
                "4, fixed": {},
                "1.25, fixed": {"guidance_scale": 1.25},
                "2, fixed": {"guidance_scale": 2.0},
                "8, fixed": {"guidance_scale": 8.0},
                "2 to 6, drawn": {"guidance_scale": 2.0, "guidance_scale_max": 6.0},
                "11, fixed": {"guidance_scale": 11.0},
                "6 to 16, drawn": {"guidance_scale": 6.0, "guidance_scale_max": 16.0},
            },
            pairs=(("6 to 16, drawn", "11, fixed"),),
        ),
        "target": Group(
            "Target",
            "Whose consistency function is aimed at: that of an average of the student's weights, of the student"
            " itself with the gradient stopped (online), or of the teacher, which is no consistency distillation,"
            " though one trainer does it: without guidance, and blurred, since the teacher's estimate is a mean. A"
            " target that moves with every step bears less of a learning rate than the base's 1e-3, so that it and the"
            " average stand beside each other at smaller ones too.",
            {
                "EMA 0.95": {},
                "EMA 0.99": {"target_decay": 0.99},
                "teacher": {"target_decay": NEVER_MOVES},
                "student": {"target": "student"},
            }
            | slower,
            also=(1, 2, 8),
            pairs=tuple((f"student, rate {rate:g}", f"EMA 0.95, rate {rate:g}") for rate in rates),
        ),
        "loss": Group(
            "Loss",
            "Pseudo-Huber's width c, elementwise, from nearly |d| to nearly the squared error, and that itself.",
            {"Huber, c = 0.001": {}} | widths | {"L2": {"loss": "l2"}},
            also=(1, 2, 8),
        ),
        "psi": Group(
            "Psi",
            "The solver that steps the teacher from s to t: of first order, second (DPM-Solver, DPM-Solver++(2S),"
            " Heun: two calls of the teacher), and third (three).",
            {"ddim": {}} | {psi: {"psi": psi} for psi in ("dpm-solver", "dpm-solver++", "heun", "dpm-solver-3")},
        ),
        "k": Group(
            "The skipping step",
            "Timesteps that the teacher's solver skips. The student is trained at every k-th timestep only, and"
            " sampled at some of these.",
            {name: {} if k == BASE["k"] else {"k": k} for k, name in grids.items()},
        ),
        "focus": Group(
            "Timesteps",
            "The share of samples whose timestep is one that 1, 2, 4 or 8 steps of sampling begin at (`--focus`); the"
            " others are spread over the whole grid, which the base run's all are.",
            {"0, the whole grid": {}} | {f"{share:g}": {"focus": share} for share in (0.25, 0.5, 0.75, 1.0)},
            also=(1, 2, 8),
        ),
        "weighting": Group(
            "Weighting",
            "Of the samples' distances: all alike, or inverse to how much noise a step of k takes away, so that the"
            " last steps weigh more.",
            {"uniform": {}, "inverse to the step": {"weighting": "inverse-step"}},
            also=(1, 2, 8),
        ),
        "grid": Group(
            "The grid of sampling",
            "The same student, sampled at timesteps spread evenly, as LCM's sampler does, or denser at the end. The"
            " first is the noisiest in both, so one step is the same.",
            {"even": {}, "quadratic": {"grid": "quadratic"}},
            also=(2, 8),
        ),
        "method": Group(
            "Method",
            "Consistency distillation, whose jumps all end at the lowest level, or trajectory consistency distillation,"
            " whose jumps end anywhere (TCD), sampled with its own solver, which adds less noise between steps.",
            {"LCD": {}, "TCD": {"method": "tcd"}},
            also=(1, 2, 8),
        ),
        "rank": Group(
            "Rank",
            "Of the LoRA; or no LoRA but all weights, which take a smaller learning rate, 3e-4. All others have the"
            " same rate; each might do better at one of its own.",
            {"rank 16": {}} | ranks | {"full": {"full": True, "learning_rate": 3e-4}},
        ),
        "length": Group(
            "Length",
            "Of the training, with the warm-up and the decay of the learning rate in proportion.",
            {f"{steps} steps": {}} | {f"{n} steps, {how}": {"train_steps": n} for n, how in lengths.items() if n},
        ),
        "seed": Group(
            "Seed",
            "The base run with another order, noise and beginning: what chance in training does, which the errors,"
            " which are those of pictures, do not hold.",
            {"seed 0": {}} | {f"seed {seed}": {"seed": seed} for seed in (1, 2)},
        ),
    }  # fmt: skip


# --- training -----------------------------------------------------------------------------------------------


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
                    + told(run, child.returncode, time.monotonic() - since))  # fmt: skip
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


def told(run: Run, code: int, seconds: float) -> str:
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


# --- measuring ----------------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """What pictures are, each measure with its error."""

    agreement: Estimate
    distance: Estimate
    lpips: Estimate
    sharpness: Estimate


class Measure(NamedTuple):
    """How a measure is said."""

    title: str
    scale: float
    digits: int
    better: int  # +1 more, -1 less, 0 neither


MEASURES = {  # of Measured
    "agreement": Measure("agreement %", 100, 1, 1),
    "distance": Measure("distance", 1, 1, -1),
    "lpips": Measure("LPIPS", 1, 4, -1),
    "sharpness": Measure("sharpness", 1, 3, 0),
}


class Bench(NamedTuple):
    """What pictures are measured with."""

    lab: Lab
    prompts: tuple[Prompt, ...]
    target: Statistics  # of the real drawings
    teacher: Drawn
    teacher_sharpness: Tensor  # (N,)

    def draw(self, title: str, **options: Any) -> Drawn:
        """A picture of each prompt."""
        return self.lab.draw([prompt.text for prompt in self.prompts], title=title, **options)

    def measured(self, drawn: Drawn) -> Measured:
        """The measures of pictures from the teacher's noise."""
        distances, sharp, of_teacher = self.lab.distances(drawn, self.teacher), sharpness(drawn), self.teacher_sharpness
        return Measured(
            self.lab.agreement(drawn, self.prompts),
            self.lab.distance(drawn, self.target),
            estimate(lambda images: float(distances[images].mean()), len(distances)),
            estimate(lambda images: float(sharp[images].mean() / of_teacher[images].mean()), len(sharp)),
        )


def bench_of(config: AblationsConfig) -> Bench:
    """Names of things, and the teacher's pictures of them."""
    lab, prompts = Lab(config.device, batch_size=config.batch_size), take(bare_prompts(), config.images)
    target = drawings_of(lab.reference, base_styles())
    teacher = lab.draw([prompt.text for prompt in prompts], config.model, title="teacher", solver="ddim",
                       steps=TEACHER_STEPS, guidance_scale=BASE["guidance_scale"])  # fmt: skip
    return Bench(lab, prompts, target, teacher, sharpness(teacher))


def sharpness(drawn: Drawn) -> Tensor:
    """Variance of each picture's Laplacian, (N,): how much fine detail it has (Pech-Pacheco et al. 2000)."""
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]).view(1, 1, 3, 3)
    return torch.cat([F.conv2d(x.mean(1, keepdim=True), kernel).var((1, 2, 3)) for x in drawn.batches()]).double()


def run(config: AblationsConfig) -> None:
    """Train what is not trained, draw, measure, write the page."""
    groups = chosen(config)
    data = config.data or drawings()
    model, items = load_model(config.model, device=pick_device(config.device)), read_items(data)
    of = f"{parts_sha256(model.path)} {sha256_file(data) if data.is_file() else data}"
    encode(items, model, model.size)  # once, before several runs would all do it
    plan = {name: runs_of(name, group, config, data, of) for name, group in groups.items()}
    del model
    runs = {run.config.out: run for of_group in plan.values() for run in of_group.values()}
    train(list(runs.values()), config.processes)
    failed = [run for run in runs.values() if not run.mark.is_file()]
    base = next(iter(next(iter(plan.values())).values()))
    if base in failed:
        raise FewstepError("the base run failed, which all others are compared to", f"see {base.log}")
    document = measure(config, groups, plan, len(items))
    write_bytes(config.out, page(document).encode())
    write_json(config.out.with_suffix(".json"), document)
    if failed:
        names = ", ".join(run.name for run in failed)
        raise FewstepError(f"left out, because training failed: {names}", f"see {failed[0].log}, and run this again")
    print(config.out)


def chosen(config: AblationsConfig) -> dict[str, Group]:
    """The groups asked for."""
    groups = all_groups(config.train_steps, config.long)
    for name in config.groups:
        if name not in groups:
            raise UsageError(f"unknown group {name}", f"there are {', '.join(groups)}")
    return {name: group for name, group in groups.items() if name in (config.groups or groups)}


def measure(
    config: AblationsConfig, groups: dict[str, Group], plan: dict[str, dict[str, Run]], samples: int
) -> dict[str, Any]:
    """The document: every figure of the page. Draws the sheets on the way."""
    bench = bench_of(config)
    undistilled = bench.draw("not distilled", model=config.model, solver="lcm", steps=STEPS, guidance_scale=1.0)
    around = bench.lab.pipeline(config.model)[1]
    pictures: dict[tuple[Path, int], Drawn] = {}
    results_of: dict[tuple[Path, int], Measured] = {}

    def of(run: Run, steps: int) -> Measured:
        key = run.config.out, steps
        if key not in results_of:
            pictures[key] = bench.draw(f"{run.name}, {steps}", steps=steps, **run.drawn_with)
            results_of[key] = bench.measured(pictures[key])
        return results_of[key]

    found = {}
    for name, group in groups.items():
        runs = {run: trained for run, trained in plan[name].items() if trained.mark.is_file()}
        results = {run: {steps: of(trained, steps) for steps in (STEPS, *group.also)} for run, trained in runs.items()}
        found[name] = {
            "runs": [about(run, runs, results) for run in runs],
            "pairs": [pair_of(*names, results) for names in group.pairs if set(names) <= set(results)],
            "failed": [run for run in plan[name] if run not in runs],
        }
        shown = {run: pictures[trained.config.out, STEPS] for run, trained in runs.items()}
        sheet(config.out.parent / "pictures" / f"ablations-{name}.jpg", shown, found[name]["runs"], bench)
    return {
        "fewstep": __version__,
        "model": config.model,
        "model_sha256": around["model_sha256"],
        "samples": samples,
        "styleless": 0 if config.data else STYLELESS,
        "train_steps": config.train_steps,
        "batch_size": config.batch_size,
        "precision": config.precision,
        "processes": config.processes,
        "images": config.images,
        "prompt": bench.prompts[0].text,
        "teacher": values(bench.measured(bench.teacher)),
        "not_distilled": values(bench.measured(undistilled)),
        "groups": found,
    }


def sheet(file: Path, shown: dict[str, Drawn], told: Sequence[dict[str, Any]], bench: Bench) -> None:
    """Write the first pictures of the teacher and of every run, from the same noise, as a small JPEG."""
    rows = [Row("teacher", f"DDIM, {TEACHER_STEPS} steps", bench.teacher.first(SHOWN))]
    for (name, drawn), one in zip(shown.items(), told, strict=True):
        rows.append(Row(name, f"distance {one['at'][0]['distance']['value']:.0f}", drawn.first(SHOWN)))
    all_rows = grid(rows, [prompt.text for prompt in bench.prompts[:SHOWN]], CELL)
    write_bytes(file, small_jpeg(all_rows, ROW_BYTES * len(rows)))


# --- figures ------------------------------------------------------------------------------------------------


def values(measured: Measured) -> dict[str, dict[str, float]]:
    """A number and its error for each measure."""
    return {name: x.numbers for name, x in measured._asdict().items()}


def less(one: Measured, other: Measured) -> Measured:
    """The paired differences."""
    return Measured(*(a.less(b) for a, b in zip(one, other, strict=True)))


def about(name: str, runs: dict[str, Run], results: dict[str, dict[int, Measured]]) -> dict[str, Any]:
    """A run of a group as data; the group's first is the base, and has no changes."""
    base = next(iter(runs))
    speeds = [read_json(runs[run].mark, "the run's speed")["images_per_s"] for run in (base, name)]
    at = [
        {"steps": steps, **values(one)} | ({} if name == base else {"change": values(less(one, results[base][steps]))})
        for steps, one in results[name].items()
    ]
    return {"name": name, "time": speeds[0] / speeds[1], "bytes": runs[name].size, "at": at}


def pair_of(name: str, beside: str, results: dict[str, dict[int, Measured]]) -> dict[str, Any]:
    """Two runs, neither of them the base, compared."""
    return {"run": name, "beside": beside, "change": values(less(results[name][STEPS], results[beside][STEPS]))}


def certain(change: dict[str, float]) -> bool:
    """Whether a change is more than chance does, in pictures."""
    return abs(change["value"]) > CERTAIN * change["error"]


# --- words --------------------------------------------------------------------------------------------------


def change_said(name: str, change: dict[str, float]) -> str:
    """A change with its error, in bold print if it is certain."""
    _, scale, digits, _ = MEASURES[name]
    text = f"{scale * change['value']:+z.{digits}f} ± {scale * change['error']:.{digits}f}"
    return f"**{text}**" if certain(change) else text


def value_said(name: str, value: dict[str, float]) -> str:
    """A measure; with its error only for agreement, whose noise is most of it."""
    _, scale, digits, _ = MEASURES[name]
    text = f"{scale * value['value']:.{digits}f}"
    return f"{text} ± {scale * value['error']:.{digits}f}" if name == "agreement" else text


def figures_said(at: dict[str, Any]) -> list[str]:
    """The cells of all measures, each with its change."""
    changes = at.get("change")
    pairs = [(value_said(name, at[name]), change_said(name, changes[name]) if changes else "") for name in MEASURES]
    return [cell for pair in pairs for cell in pair]


def columns(first: str, *more: str) -> list[str]:
    """Titles of `figures_said`, and of what stands around it."""
    return [first, *(title for measure in MEASURES.values() for title in (measure.title, "change")), *more]


def main_table(runs: Sequence[dict[str, Any]]) -> str:
    """The runs at STEPS steps, with training time, and sizes if they differ."""
    sizes = len({round(run["bytes"], -4) for run in runs}) > 1
    rows = [
        [run["name"], *figures_said(run["at"][0]), f"{run['time']:.2f}", *([f"{run['bytes'] / 1e6:.2f}"] * sizes)]
        for run in runs
    ]
    return text_table(columns("run", "time", *(["file, MB"] * sizes)), rows)


def steps_table(runs: Sequence[dict[str, Any]]) -> str:
    """The runs at other numbers of steps; empty if there are none."""
    rows = [
        [f"{steps} step{'s' * (steps > 1)}: {run['name']}", *figures_said(at)]
        for number in range(1, len(runs[0]["at"]))
        for run in runs
        for at in [run["at"][number]]
        for steps in [at["steps"]]
    ]
    return text_table(columns("run"), rows) if rows else ""


def verdict(name: str, runs: Sequence[dict[str, Any]]) -> str:
    """By one measure: which run is best, and which are told apart from the base, in a sentence."""
    measure, sign = MEASURES[name], MEASURES[name].better
    base, others = runs[0]["name"], runs[1:]
    top = max(sign * run["at"][0][name]["value"] for run in runs)
    best = [run["name"] for run in runs if sign * run["at"][0][name]["value"] == top]
    changes = {run["name"]: run["at"][0]["change"][name] for run in others}
    told_apart = {run: sign * change["value"] for run, change in changes.items() if certain(change)}
    kinds = {
        f"better than {base}": [run for run, change in told_apart.items() if change > 0],
        f"worse than {base}": [run for run, change in told_apart.items() if change < 0],
        f"not told apart from {base}": [run for run in changes if run not in told_apart],
    }
    said = [f"{kind}: {listed(names)}" for kind, names in kinds.items() if names]
    return f"* {measure.title.removesuffix(' %')}: best {'are' if len(best) > 1 else 'is'} {listed(best)}; " + (
        "; ".join(said) + "."
    )


def listed(names: Sequence[str]) -> str:
    """Names, each as code, since some hold commas."""
    return ", ".join(f"`{name}`" for name in names)


def pair_said(pair: dict[str, Any]) -> str:
    """Two runs compared, in a sentence."""
    changes = [f"{MEASURES[name].title} {change_said(name, change)}" for name, change in pair["change"].items()]
    return f"* `{pair['run']}` beside `{pair['beside']}`: {', '.join(changes)}."


def section(name: str, found: dict[str, Any], group: Group) -> str:
    """A group's part of the page."""
    runs = found["runs"]
    said = [verdict(measure, runs) for measure in MEASURES if MEASURES[measure].better and len(runs) > 1]
    said += [pair_said(pair) for pair in found["pairs"]]
    said += [f"* Left out, because training failed: {listed(found['failed'])}."] if found["failed"] else []
    parts = [f"## {group.title}", textwrap.fill(group.text, 120), main_table(runs), "\n".join(said), steps_table(runs)]
    parts.append(f"![{group.title}: each run's pictures from the same noise](pictures/ablations-{name}.jpg)")
    return "\n\n".join(part for part in parts if part)


def references(document: dict[str, Any]) -> str:
    """What lies at the two ends: the teacher's many steps, and the sampler's few without distillation."""
    guidance = BASE["guidance_scale"]
    rows = {f"teacher: DDIM, {TEACHER_STEPS} steps, guidance {guidance:g}": document["teacher"],
            f"not distilled: LCM's sampler, {STEPS} steps": document["not_distilled"]}  # fmt: skip
    titles = ["model", *(measure.title for measure in MEASURES.values())]
    return text_table(titles, [[name, *(value_said(m, row[m]) for m in MEASURES)] for name, row in rows.items()])


def by_chance(document: dict[str, Any]) -> str:
    """How many of the page's differences would be called certain if there were none."""
    ats = [at for group in document["groups"].values() for run in group["runs"] for at in run["at"] if "change" in at]
    count = len(ats) * len(MEASURES)
    marked = sum(certain(at["change"][name]) for at in ats for name in MEASURES)
    return f"{marked} of {count} are; of {count} differences of nothing, about {count * CHANCE:.0f} would be"


def by_seed(document: dict[str, Any]) -> str:
    """How far other seeds alone move each measure; a paragraph, or nothing without the group."""
    runs = document["groups"].get("seed", {"runs": []})["runs"][1:]
    if not runs:
        return ""
    largest = {
        name: max((run["at"][0]["change"][name] for run in runs), key=lambda change: abs(change["value"]))
        for name in MEASURES
    }
    moved = [
        f"{MEASURES[name].title} by {MEASURES[name].scale * abs(change['value']):.{MEASURES[name].digits}f}"
        for name, change in largest.items()
    ]
    return (
        f"\nAnother seed of the base run alone moved {', '.join(moved)} at most (the last table): what is smaller than"
        " that may be the seed's doing, whatever its error.\n"
    )


def page(document: dict[str, Any]) -> str:
    """docs/ablations.md."""
    groups = all_groups(document["train_steps"], long=True)
    text = template("ablations")
    styleless = document["styleless"]
    base = {name: BASE[name] for name in ("rank", "guidance_scale", "psi", "k", "target_decay", "huber_c")}
    said = {
        "captions": f", one in {styleless} told by what it shows alone" if styleless else "",
        "certain": CERTAIN,
        "steps": STEPS,
        "references": references(document),
        "by_chance": by_chance(document),
        "by_seed": by_seed(document),
        "at_a_time": f"{document['processes']} at a time, of one thread",
        "sections": "\n\n".join(section(name, found, groups[name]) for name, found in document["groups"].items()),
    }
    return text.format(**document | base | said)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the runs keep their checkpoints
    sys.exit(main_of(AblationsConfig, run))
