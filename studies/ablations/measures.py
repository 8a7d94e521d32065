"""What pictures of the trainings are: measures of each, their spread over seeds, and a sheet."""

from collections.abc import Mapping, Sequence
from itertools import starmap
from math import sqrt
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, NamedTuple

from fewstep import __version__
from fewstep.evaluate.row_pictures import RowPictures
from fewstep.io import read_json, write_bytes
from fewstep.metrics.estimate import CONFIDENCE, student_t
from fewstep.sheets import SheetRow, grid, small_jpeg
from studies.ablations.arms import BASE, Arm
from studies.ablations.config import AblationsConfig
from studies.ablations.runs import Planned
from studies.bench import TEACHER_STEPS, Bench, sharp
from studies.trainings import STYLELESS, Run

STEPS, FEWER = 4, 2  # of the sampler; agreement is taken at both
SHEET_PROMPTS, CELL = 8, 96  # pictures in a row of the sheet, and their pixels
ROW_BYTES = 8_000  # of the sheet's file


class Measure(NamedTuple):
    """How the page has a measure."""

    title: str
    scale: float
    digits: int
    better: int  # +1 more, -1 less, 0 neither


MEASURES = {
    "kid_t": Measure("KID-T x 1000", 1000, 1, -1),
    "agreement": Measure("agreement %", 100, 1, 1),
    "sharpness": Measure("sharpness", 1, 2, 0),
    "agreement_fewer": Measure(f"agreement %, {FEWER} steps", 100, 1, 1),
}


def measure(config: AblationsConfig, plan: Sequence[Planned], samples: int) -> dict[str, Any]:
    """The document: every figure of the page. Draws the sheet on the way. plan: finished trainings, the base first."""
    bench = Bench(config)
    found = [measured_arm(bench, arm, runs) for arm, runs in plan]
    for one in found:
        one["change"] = {} if one is found[0] else changes(one["runs"], found[0]["runs"])
        one["time"] = found[0]["images_per_s"] / one["images_per_s"]
    base_guidance = BASE["guidance_scale"]
    plain, plain_fewer = (
        bench.draw("not distilled", solver="lcm", steps=steps, guidance_scale=1.0) for steps in (STEPS, FEWER)
    )
    sheet(config.out.parent / "pictures" / "ablations.jpg", bench, plan)
    return {
        "fewstep": __version__,
        "model": config.model,
        "model_sha256": bench.lab.session(config.model)[1]["model_sha256"],
        "prompt": bench.prompts[0].text,
        "samples": samples,
        "styleless": 0 if config.data else STYLELESS,
        **config.model_dump(mode="json", include={"seeds", "train_steps", "batch_size", "images", "precision"}),
        "teachers": {
            f"{guidance:g}": {"agreement": teacher.agreement, "sharpness": 1.0}
            for guidance, teacher in bench.teachers.items()
        },
        "not_distilled": measured(bench, plain, plain_fewer, base_guidance),
        "arms": found,
    }


def measured_arm(bench: Bench, arm: Arm, runs: Sequence[Run]) -> dict[str, Any]:
    """An arm as data."""
    rows = []
    for run in runs:
        pictures, fewer = (
            bench.draw(f"{run.name}, {steps} steps", steps=steps, lora=(str(run.lora),)) for steps in (STEPS, FEWER)
        )
        rows.append(measured(bench, pictures, fewer, arm.guidance_scale))
    speeds = [read_json(run.mark, "the run's speed")["images_per_s"] for run in runs]
    return {
        "name": arm.name,
        "guidance_scale": arm.guidance_scale,
        "bytes": runs[0].lora.stat().st_size,
        "images_per_s": median(speeds),
        "runs": rows,
    }


def measured(bench: Bench, pictures: RowPictures, fewer: RowPictures, guidance_scale: float) -> dict[str, float]:
    """Each of MEASURES. fewer: pictures in FEWER steps. guidance_scale: of the teacher."""
    return {
        "kid_t": bench.kid_t(pictures, guidance_scale).value,
        "agreement": bench.agreement(pictures).value,
        "sharpness": sharp(pictures) / bench.teacher(guidance_scale).sharpness,
        "agreement_fewer": bench.agreement(fewer).value,
    }


class Change(NamedTuple):
    """A difference to the base, over pairs of one seed."""

    value: float  # the mean
    error: float  # its standard error
    margin: float  # of the interval by Student's t


def changes(runs: Sequence[Mapping[str, float]], base: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Of each measure."""
    return {name: change([one[name] for one in runs], [one[name] for one in base])._asdict() for name in MEASURES}


def change(values: Sequence[float], base: Sequence[float]) -> Change:
    """The mean of the paired differences, and its error, which is that of seeds."""
    differences = list(starmap(float.__sub__, zip(values, base, strict=True)))
    error = stdev(differences) / sqrt(len(differences))
    return Change(fmean(differences), error, student_t(CONFIDENCE, len(differences) - 1) * error)


def sheet(file: Path, bench: Bench, plan: Sequence[Planned]) -> None:
    """Write the first pictures of the teachers and of every arm's first seed, from the same noise, as a small JPEG."""
    note = f"DDIM, {TEACHER_STEPS} steps"
    rows = [
        SheetRow(f"teacher, guidance {scale:g}", note, bench.draw_teacher(scale, SHEET_PROMPTS).first(SHEET_PROMPTS))
        for scale in bench.teachers
    ]
    for arm, runs in plan:
        pictures = bench.draw(f"{runs[0].name}, {STEPS} steps", steps=STEPS, lora=(str(runs[0].lora),))
        name, _, rest = arm.name.partition(", ")
        rows.append(SheetRow(name, rest, pictures.first(SHEET_PROMPTS)))
    table = grid(rows, [prompt.text for prompt in bench.prompts[:SHEET_PROMPTS]], CELL)
    write_bytes(file, small_jpeg(table, ROW_BYTES * len(rows)))
