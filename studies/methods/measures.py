"""What the students' pictures are, in 1, 2, 4 and 8 steps, and whether a negative prompt works."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from fewstep import __version__
from fewstep.evaluate.row_pictures import RowPictures
from fewstep.io import read_json, write_bytes
from fewstep.metrics.estimate import Estimate
from fewstep.metrics.kid import mean_interval
from fewstep.sheets import SheetRow, grid, small_jpeg
from studies.bench import TEACHER_STEPS, Bench, sharp
from studies.methods.config import MethodsConfig
from studies.methods.students import FREE, GUIDANCE, LORA, Student, result_of
from studies.negative_prompts import COUNT, NEGATIVE, PROMPTS, redness
from studies.trainings import STYLELESS, Run

STEPS = (1, 2, 4, 8)
SHEET_STEPS, SHEET_PROMPTS, CELL = 4, 8, 96  # steps and number of a sheet row's pictures, and their pixels
ROW_BYTES = 8_000  # of the sheet's file
PLAIN = "not distilled"
Trained = tuple[Student, Run]


def measure(config: MethodsConfig, trained: Sequence[Trained], samples: int) -> dict[str, Any]:
    """The document: every figure of the page. Draws the sheet on the way."""
    bench = Bench(config)
    rows = list(plain_rows(bench))
    for student, run in trained:
        rows += rows_of(bench, student, run)
    sheet(config.out.parent / "pictures" / "methods.jpg", bench, trained)
    return {
        "fewstep": __version__,
        "model": config.model,
        "model_sha256": bench.lab.session(config.model)[1]["model_sha256"],
        "samples": samples,
        "styleless": 0 if config.data else STYLELESS,
        **config.model_dump(mode="json", include={"train_steps", "batch_size", "images", "precision"}),
        "teachers": {f"{scale:g}": teacher.agreement for scale, teacher in bench.teachers.items()},
        "rows": rows,
        "redness": next((reddened(bench, run) for student, run in trained if student is FREE), None),
        "images_per_s": {run.name: read_json(run.mark, "the run's speed")["images_per_s"] for _, run in trained},
    }


def plain_rows(bench: Bench) -> Iterator[dict[str, Any]]:
    """The teacher in few steps of LCM's sampler, on the timesteps of most students, without guidance."""
    for steps in STEPS:
        pictures = bench.draw(PLAIN, solver="lcm", k=LORA["k"], steps=steps, guidance_scale=1.0)
        yield row(bench, PLAIN, 1.0, steps, pictures, GUIDANCE)


def rows_of(bench: Bench, student: Student, run: Run) -> Iterator[dict[str, Any]]:
    """A student's, at every scale and number of steps that it is sampled at."""
    for scale in student.scales:
        for steps in STEPS:
            pictures = draw(bench, student, run, scale, steps)
            yield row(bench, student.name, scale, steps, pictures, student.judged_at(scale))


def draw(bench: Bench, student: Student, run: Run, scale: float, steps: int, count: int | None = None) -> RowPictures:
    """A student's pictures."""
    title = f"{student.name}, {steps} steps"
    return bench.draw(title, count, **player(run, bench.config.model), steps=steps, guidance_scale=scale)


def player(run: Run, teacher: str) -> dict[str, Any]:
    """The model and the LoRAs that a training's result is drawn with."""
    result = str(result_of(run))
    return {"model": result} if run.config.full else {"model": teacher, "lora": (result,)}


def row(
    bench: Bench, name: str, scale: float, steps: int, pictures: RowPictures, teacher_scale: float
) -> dict[str, Any]:
    """The measures of pictures, as data."""
    kid_t, agreement = bench.kid_t(pictures, teacher_scale), bench.agreement(pictures)
    return {
        "student": name,
        "guidance_scale": scale,
        "steps": steps,
        "nfe": pictures.nfe,
        "teacher_guidance": teacher_scale,
        "kid_t": kept(kid_t),
        "agreement": kept(agreement),
        "sharpness": sharp(pictures) / bench.teacher(teacher_scale).sharpness,
    }


def kept(found: Estimate) -> dict[str, Any]:
    """An estimate as data."""
    return found._asdict()


def reddened(bench: Bench, run: Run) -> dict[str, list[float]]:
    """Of red things, without and with a negative prompt: the mean redness with the ends of its interval, and of the
    pictures' differences.
    """
    model = player(run, bench.config.model)
    session, _ = bench.lab.session(model["model"], model.get("lora", ()))
    each = []
    for negative in ("", NEGATIVE):
        pictures = session.draw(
            PROMPTS, count=COUNT, steps=SHEET_STEPS, guidance_scale=GUIDANCE, negative_prompt=negative
        )
        each.append(redness(torch.stack([picture.pixels for picture in pictures])))
    without, with_it = each
    found = {"without": without, "with": with_it, "change": with_it - without}
    return {name: list(mean_interval(values.tolist())) for name, values in found.items()}


def sheet(file: Path, bench: Bench, trained: Sequence[Trained]) -> None:
    """Write the first pictures of the teacher, of it in few steps, and of every student, as a small JPEG."""
    teacher = bench.draw_teacher(GUIDANCE, SHEET_PROMPTS)
    plain = bench.draw(PLAIN, SHEET_PROMPTS, solver="lcm", k=LORA["k"], steps=SHEET_STEPS, guidance_scale=1.0)
    rows = [
        SheetRow(f"teacher, guidance {GUIDANCE:g}", f"DDIM, {TEACHER_STEPS} steps", teacher.first(SHEET_PROMPTS)),
        SheetRow(PLAIN, f"LCM's sampler, {SHEET_STEPS} steps", plain.first(SHEET_PROMPTS)),
    ]
    for student, run in trained:
        name, _, rest = student.name.partition(", ")
        for scale in student.scales:
            pictures = draw(bench, student, run, scale, SHEET_STEPS, SHEET_PROMPTS)
            note = ", ".join(filter(None, (rest, f"guidance {scale:g}" if scale != 1 else "")))
            rows.append(SheetRow(name, note, pictures.first(SHEET_PROMPTS)))
    table = grid(rows, [prompt.text for prompt in bench.prompts[:SHEET_PROMPTS]], CELL)
    write_bytes(file, small_jpeg(table, ROW_BYTES * len(rows)))
