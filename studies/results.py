"""Write docs/results.md, LCM-LoRA beside the solvers it replaces, measured: `python -m studies.results`.

Everything goes through `compare` and `tune`. Pictures, and what is measured of them, are kept under $FEWSTEP_CACHE, so
an interrupted run goes on where it was. What a run leaves out (--pieces) stays on the page as it was measured before.
"""

import json
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from PIL import Image
from pydantic import Field

from fewstep import __version__
from fewstep.assets import ACCELERATION, MODEL, STYLES, shipped_model
from fewstep.cli import main_of
from fewstep.configs import CompareConfig, Config, Device, Precision, TuneConfig, build
from fewstep.errors import FewstepError, UsageError
from fewstep.evaluate.compare import compare
from fewstep.evaluate.prompts import OF, reference_items
from fewstep.evaluate.rows import parse_row
from fewstep.evaluate.sheets import small_jpeg
from fewstep.evaluate.tune import tune
from fewstep.io import cache_dir, read_json, sha256_bytes, sha256_file, write_bytes, write_json
from fewstep.lora.references import parse_reference
from fewstep.models.model import parts_sha256
from studies.pages import DOCS
from studies.results_page import BARE, FINETUNED, LCM_STEPS, PIECES, STYLE_STEPS, STYLE_WEIGHT, WEIGHTS, page

FORMAT = "3"  # raise when a finished measurement no longer holds
FAST = f"lcm:{{steps}}@1+{ACCELERATION}:1"
TABLE_ROWS = (
    "ddim:32@best",
    "dpm-solver:16@best",
    "dpm-solver++:8@best",
    *(FAST.format(steps=steps) for steps in (4, 2)),
)
CONTROL_ROWS = (
    "ddim:32@best",
    *(FAST.format(steps=steps) for steps in (4, 1, 8)),
    "ddim:4@best",
    BARE,  # what LCM's sampler does by itself
    f"lcm,grid=lcm:4@1+{ACCELERATION}:1",  # and the LoRA where LCM spaces its timesteps
    "dpm-solver++,grid=quadratic:8@best",  # and others where lcm does
)
LABEL_ROWS = (
    "ddim:32@best",
    "dpm-solver++:8@best",
    *(FAST.format(steps=steps) for steps in (4, 2)),
    BARE,
)
FINETUNED_ROWS = ("dpm-solver++:25@best", *(FAST.format(steps=steps) for steps in (4, 2)))
CONTROL_IMAGES, GRID_IMAGES = 2112, 128
# guidance scales that solvers are tried at: of the model; of it with one style's LoRA; of one fine-tuned to a style
GUIDANCE, STYLE_GUIDANCE, FINETUNED_GUIDANCE = "1,1.25,1.5,2", "1,1.25,1.5,2,3,4,6", "1,1.25,1.5,2,3"
TIMING_ROUNDS = 7  # in the last pass, when nothing else is drawn
LARGEST = 75_000  # bytes of a picture file; there are eight

Job = CompareConfig | TuneConfig


class ResultsConfig(Config):
    """Measure LCM-LoRA beside DDIM, DPM-Solver and DPM-Solver++, with styles, and on a fine-tuned model."""

    images: Annotated[int, Field(ge=8)] = 5000
    """Per row and seed set of the table; the controls take at most 2112, the grid 128, others as many as are real."""
    seed_sets: Annotated[int, Field(ge=1)] = 3
    """Times the table's images are drawn, from other noise each time."""
    pieces: str = ",".join(PIECES)
    """What to measure, of table, controls, labels, figure3, grid and finetuned; the rest of the page stays as it is."""
    guidance_grid: str | None = None
    """Guidance scales that solvers are tried at, on 512 images each, for their best, instead of each piece's own."""
    processes: Annotated[int, Field(ge=1)] = 1
    """Rows are first drawn by so many processes, which share the cores; then one process measures them all."""
    batch_size: int = 16
    """Pictures drawn at once."""
    dtype: Precision = "bf16"
    """Precision of the networks that draw."""
    device: Device = "auto"
    """Where to compute."""
    out: Path = DOCS / "results.md"
    """The page; the figures stand beside it as .json, the pictures in the folder pictures."""


class Finished(NamedTuple):
    """A comparison or a tuning that is done."""

    document: dict[str, Any]
    sheet: Path


def run(config: ResultsConfig) -> None:
    """Measure the pieces that were asked for, and write the page after each of them."""
    names = pieces_of(config.pieces)
    check_inputs(names)
    share_cores(config.processes)
    figures = config.out.with_suffix(".json")
    document = read_json(figures, "figures") if figures.is_file() else {}
    for name in names:
        say(f"measuring {name}")
        document[name] = portable(MEASURED[name](config))
        document = {piece: document[piece] for piece in PIECES if piece in document}
        write_bytes(config.out, page(document).encode())
        write_json(figures, document)
    print(page(document))


def say(note: str) -> None:
    """Tell something on stderr."""
    print(f"note: {note}", file=sys.stderr, flush=True)


def pieces_of(text: str) -> tuple[str, ...]:
    """The pieces that were typed, in the order of the page. Raises UsageError for one there is not."""
    typed = [word.strip() for word in text.split(",")]
    for word in typed:
        if word not in PIECES:
            raise UsageError(f"--pieces {text}: {word!r} is no piece", f"known ones: {','.join(PIECES)}")
    return tuple(piece for piece in PIECES if piece in typed)


# --- what is measured ---------------------------------------------------------------------------------------


def drawings(name: str) -> Path:
    """The table of real drawings of that name."""
    return cache_dir() / "emoji" / "images" / f"{name}.jsonl"


def finetuned_model() -> Path:
    """The folder of the model that the acceleration LoRA has never seen."""
    return cache_dir() / "emoji" / FINETUNED / "model"


def check_inputs(names: Sequence[str]) -> None:
    """Raise FewstepError naming the first input that is not there, and what makes it."""
    wanted = {"figure3": STYLES, "grid": (), "finetuned": (FINETUNED,)}
    for table in (drawings(name) for piece in names for name in wanted.get(piece, ("base",))):
        if not table.is_file():
            raise FewstepError(
                f"the real drawings are not there: {table}", "make them: python -m recipes.emoji.dataset"
            )
    if "finetuned" in names and not (finetuned_model() / "unet").is_dir():
        raise FewstepError(
            f"the fine-tuned model is not there: {finetuned_model()}",
            "make it: python -m recipes.emoji.build --until fxemoji; or leave it out of --pieces",
        )


def table_piece(config: ResultsConfig) -> dict[str, Any]:
    """LCM-LoRA and the solvers at the steps they are known for."""
    job = comparison(config, TABLE_ROWS, drawings("base"), config.images, config.seed_sets)
    return only(config, "table", job)


def controls_piece(config: ResultsConfig) -> dict[str, Any]:
    """LCM-LoRA at other steps, without the LoRA, at equal steps without it, and on the other grid."""
    job = comparison(config, CONTROL_ROWS, drawings("base"), min(config.images, CONTROL_IMAGES))
    return only(config, "controls", job)


def labels_piece(config: ResultsConfig) -> dict[str, Any]:
    """The same where prompts leave the style open, which has to be decided in the few steps too."""
    file, count = labels(drawings("base"))
    job = comparison(config, LABEL_ROWS, drawings("base"), min(config.images, count))
    return only(config, "labels", job.model_copy(update={"prompt_file": file}))


def labels(table: Path) -> tuple[Path, int]:
    """A prompt file, named by its content, of what captions say after the style, each thing once; and how many."""
    lines = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(lines)
    things = {line["concept"]: line | {"text": line["text"].partition(OF)[2]} for line in lines}
    rows = [json.dumps({key: thing[key] for key in ("text", "style", "concept")}) for thing in things.values()]
    content = "\n".join(rows).encode()
    file = cache_dir() / "results" / f"labels-{sha256_bytes(content)[:16]}.jsonl"
    write_bytes(file, content)
    return file, len(rows)


def figure3_piece(config: ResultsConfig) -> dict[str, Any]:
    """Each style alone by its steps, at the guidance that is best for it at most of them, and with lcm."""

    def job(style: str, rows: Sequence[str]) -> CompareConfig:
        return comparison(config, rows, drawings(style), few(config, drawings(style)), guidance_grid=STYLE_GUIDANCE)

    searches = measured(config, [job(style, (alone(style, STYLE_STEPS[0], "best"),)) for style in STYLES])
    best = [search.document["rows"][0] for search in searches]
    jobs = [job(style, style_rows(style, row["guidance_scale"])) for style, row in zip(STYLES, best, strict=True)]
    return {
        style: {
            "guidance_search": row["guidance_search"],
            "comparison": done.document,
            "picture": picture(config, f"figure3-{style}", done.sheet),
        }
        for style, row, done in zip(STYLES, best, measured(config, jobs), strict=True)
    }


def alone(style: str, steps: int, guidance: str) -> str:
    """The row of a style without acceleration."""
    return f"dpm-solver++:{steps}@{guidance}+{style}:1"


def style_rows(style: str, guidance: float) -> tuple[str, ...]:
    """The rows of Figure 3; the first is what the others are held against."""
    return (
        *(alone(style, steps, f"{guidance:g}") for steps in STYLE_STEPS),
        *(f"lcm:{steps}@1+{style}:{STYLE_WEIGHT}+{ACCELERATION}:1" for steps in LCM_STEPS),
    )


def grid_piece(config: ResultsConfig) -> dict[str, Any]:
    """Weights of each style with weights of lcm."""
    jobs = [
        build(TuneConfig, style=style, acceleration=ACCELERATION, model=MODEL, grid=WEIGHTS, rounds=0,
              images=min(config.images, GRID_IMAGES), batch_size=config.batch_size, dtype=config.dtype,
              device=config.device)
        for style in STYLES
    ]  # fmt: skip
    return {
        style: {"tuning": done.document, "picture": picture(config, f"grid-{style}", done.sheet)}
        for style, done in zip(STYLES, measured(config, jobs), strict=True)
    }


def finetuned_piece(config: ResultsConfig) -> dict[str, Any]:
    """A fine-tuned model alone, and with the lcm that was made of another."""
    reference = drawings(FINETUNED)
    job = comparison(config, FINETUNED_ROWS, reference, few(config, reference), model=str(finetuned_model()),
                     guidance_grid=FINETUNED_GUIDANCE)  # fmt: skip
    return only(config, "finetuned", job)


def only(config: ResultsConfig, name: str, job: CompareConfig) -> dict[str, Any]:
    """A piece that is one comparison."""
    (done,) = measured(config, [job])
    return {"comparison": done.document, "picture": picture(config, name, done.sheet)}


MEASURED: dict[str, Callable[[ResultsConfig], dict[str, Any]]] = {
    "table": table_piece,
    "controls": controls_piece,
    "labels": labels_piece,
    "figure3": figure3_piece,
    "grid": grid_piece,
    "finetuned": finetuned_piece,
}


def few(config: ResultsConfig, reference: Path) -> int:
    """As many images as there are real ones, or fewer if fewer were asked for."""
    return min(config.images, len(reference_items(reference)))


def comparison(
    config: ResultsConfig,
    rows: Sequence[str],
    reference: Path,
    images: int,
    seed_sets: int = 1,
    model: str = MODEL,
    guidance_grid: str = GUIDANCE,
) -> CompareConfig:
    """What `fewstep compare` would be told; another guidance grid only where none was typed."""
    return build(CompareConfig, model=model, rows=tuple(rows), reference=reference, images=images, seed_sets=seed_sets,
                 guidance_grid=config.guidance_grid or guidance_grid, timing_rounds=TIMING_ROUNDS,
                 batch_size=config.batch_size, dtype=config.dtype, device=config.device)  # fmt: skip


# --- measuring, once ----------------------------------------------------------------------------------------


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
                say(f"drawn: {told(waiting[done])}")
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


def told(job: Job) -> str:
    """A job in a few words."""
    return " ".join(job.rows) if isinstance(job, CompareConfig) else f"{job.style} {job.grid}"


# --- what goes on the page ----------------------------------------------------------------------------------


def picture(config: ResultsConfig, name: str, sheet: Path) -> str:
    """The sheet as a JPEG of at most LARGEST bytes beside the page, and its path from there."""
    path = f"pictures/results-{name}.jpg"
    with Image.open(sheet) as image:
        write_bytes(config.out.parent / path, small_jpeg(image, LARGEST))
    return path


def portable(value: Any) -> Any:
    """The same figures, the cache folder in them called what it is by default."""
    if isinstance(value, dict):
        return {key: portable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [portable(one) for one in value]
    return value.replace(str(cache_dir()), "~/.cache/fewstep") if isinstance(value, str) else value


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # the drawing processes end with it
    sys.exit(main_of(ResultsConfig, run))
