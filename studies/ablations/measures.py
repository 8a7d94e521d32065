"""What pictures of the runs are: figures with their errors, and sheets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fewstep import __version__
from fewstep.evaluate.prompts import Prompt, bare_prompts
from fewstep.evaluate.row_pictures import RowPictures
from fewstep.io import read_json, write_bytes
from fewstep.metrics.estimate import Estimate, estimate
from fewstep.metrics.frechet import Statistics
from fewstep.metrics.sharpness import sharpness
from fewstep.sheets import SheetRow, grid, small_jpeg
from studies.ablations.config import AblationsConfig
from studies.ablations.groups import BASE, Group
from studies.ablations.runs import STYLELESS, Run
from studies.lab import Lab, base_styles, drawings_of, take

CERTAIN = 2  # standard errors
STEPS = 4  # of the sampler
TEACHER_STEPS = 100
SHEET_PROMPTS, CELL = 8, 128  # pictures in a row of a sheet, and their pixels
ROW_BYTES = 11_000  # of a sheet's file


class Measured(NamedTuple):
    """What pictures are, each measure with its error."""

    agreement: Estimate
    distance: Estimate
    lpips: Estimate
    sharpness: Estimate


class Measure(NamedTuple):
    """How a measure is sentences."""

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
    teacher: RowPictures
    teacher_sharpness: Tensor  # (N,)

    def draw(self, title: str, **options: Any) -> RowPictures:
        """A picture of each prompt."""
        return self.lab.draw([prompt.text for prompt in self.prompts], title=title, **options)

    def measured(self, pictures: RowPictures) -> Measured:
        """The measures of pictures from the teacher's noise."""
        distances, sharp, of_teacher = (
            self.lab.distances(pictures, self.teacher),
            sharpness(pictures.batches()),
            self.teacher_sharpness,
        )
        return Measured(
            self.lab.agreement(pictures, self.prompts),
            self.lab.distance(pictures, self.target),
            estimate(lambda images: float(distances[images].mean()), len(distances)),
            estimate(lambda images: float(sharp[images].mean() / of_teacher[images].mean()), len(sharp)),
        )


def bench_of(config: AblationsConfig) -> Bench:
    """Names of things, and the teacher's pictures of them."""
    lab, prompts = Lab(config.device, batch_size=config.batch_size), take(bare_prompts(), config.images)
    target = drawings_of(lab.reference, base_styles())
    teacher = lab.draw([prompt.text for prompt in prompts], config.model, title="teacher", solver="ddim",
                       steps=TEACHER_STEPS, guidance_scale=BASE["guidance_scale"])  # fmt: skip
    return Bench(lab, prompts, target, teacher, sharpness(teacher.batches()))


def measure(
    config: AblationsConfig, groups: dict[str, Group], plan: dict[str, dict[str, Run]], samples: int
) -> dict[str, Any]:
    """The document: every figure of the page. Draws the sheets on the way."""
    bench = bench_of(config)
    undistilled = bench.draw("not distilled", model=config.model, solver="lcm", steps=STEPS, guidance_scale=1.0)
    around = bench.lab.session(config.model)[1]
    pictures: dict[tuple[Path, int], RowPictures] = {}
    results_of: dict[tuple[Path, int], Measured] = {}

    def of(run: Run, steps: int) -> Measured:
        key = run.config.out, steps
        if key not in results_of:
            pictures[key] = bench.draw(f"{run.name}, {steps}", steps=steps, **run.draw_options)
            results_of[key] = bench.measured(pictures[key])
        return results_of[key]

    found: dict[str, dict[str, Any]] = {}
    for name, group in groups.items():
        runs = {run: trained for run, trained in plan[name].items() if trained.mark.is_file()}
        results = {run: {steps: of(trained, steps) for steps in (STEPS, *group.also)} for run, trained in runs.items()}
        found[name] = {
            "runs": [about(run, runs, results) for run in runs],
            "pairs": [pair_of(*names, results) for names in group.pairs if set(names) <= set(results)],
            "failed": [run for run in plan[name] if run not in runs],
        }
        drawings_of_runs = {run: pictures[trained.config.out, STEPS] for run, trained in runs.items()}
        sheet(config.out.parent / "pictures" / f"ablations-{name}.jpg", drawings_of_runs, found[name]["runs"], bench)
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


def sheet(
    file: Path, drawings_of_runs: dict[str, RowPictures], entries: Sequence[dict[str, Any]], bench: Bench
) -> None:
    """Write the first pictures of the teacher and of every run, from the same noise, as a small JPEG."""
    rows = [SheetRow("teacher", f"DDIM, {TEACHER_STEPS} steps", bench.teacher.first(SHEET_PROMPTS))]
    for (name, pictures), one in zip(drawings_of_runs.items(), entries, strict=True):
        rows.append(SheetRow(name, f"distance {one['at'][0]['distance']['value']:.0f}", pictures.first(SHEET_PROMPTS)))
    all_rows = grid(rows, [prompt.text for prompt in bench.prompts[:SHEET_PROMPTS]], CELL)
    write_bytes(file, small_jpeg(all_rows, ROW_BYTES * len(rows)))


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


def pair_of(name: str, other: str, results: dict[str, dict[int, Measured]]) -> dict[str, Any]:
    """Two runs, neither of them the base, compared."""
    return {"run": name, "beside": other, "change": values(less(results[name][STEPS], results[other][STEPS]))}


def certain(change: dict[str, float]) -> bool:
    """Whether a change is more than chance does, in pictures."""
    return abs(change["value"]) > CERTAIN * change["error"]
