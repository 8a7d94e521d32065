"""Limit 4: some inputs are drawn worse, or shaken more."""

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from fewstep.data.prompts import Prompt
from fewstep.diffusion.sampler import ImageNoise
from fewstep.evaluate.report import text_table
from fewstep.evaluate.row_pictures import RowPictures
from fewstep.metrics.estimate import Estimate
from fewstep.session import Session
from fewstep.sheets import SheetRow, grid, wrapped
from studies.lab import Given, embedded
from studies.limits.bench import (
    CELL,
    STUDENT,
    STUDENT_STEPS,
    TEACHER,
    TRUTH,
    Bench,
    Measured,
    Way,
    lcm,
    median,
    of_values,
    options_of,
    with_changes,
    worst_decile,
)
from studies.limits.words import Figures, change_text, code, picture, row_of, value_text

CHANGED = 0.1  # of a picture's noise
SHAKEN = 64  # pictures at most whose noise is changed
OTHER_NOISE = 1_000_000  # its seeds begin here
WORST = 6  # of them shown
KEYS = ("far", "far_worst", "apart", "apart_worst")


def inputs(bench: Bench) -> Measured:
    """How far each picture is from the ODE's own, and how far a slightly other noise moves it."""
    prompts = bench.names
    truth = bench.draw(TRUTH, prompts)
    rows, far, drawings, teacher = [], {}, {TRUTH.name: truth}, list[Estimate]()
    for way in (TEACHER, *map(lcm, STUDENT_STEPS)):
        pictures = drawings[way.name] = bench.draw(way, prompts)
        far[way.name] = bench.lab.distances(pictures, truth)
        apart = shaken(bench, way)
        values = [of_values(what, those) for those in (far[way.name], apart) for what in (median, worst_decile)]
        teacher = teacher or values
        rows.append({"drawn_with": way.name, **with_changes(KEYS, values, teacher)})
    order = far[STUDENT.name].argsort(descending=True).tolist()[:WORST]
    figures = {
        "truth": TRUTH.name,
        "teacher": TEACHER.name,
        "student": STUDENT.name,
        "changed": CHANGED,
        "shaken": min(SHAKEN, bench.images),
        "rows": rows,
    }
    return Measured(figures, {"worst": worst_sheet(order, prompts, far[STUDENT.name], drawings)})


def shaken(bench: Bench, way: Way) -> Tensor:
    """LPIPS of pictures and of those from slightly other noise, (SHAKEN,)."""
    lab, prompts = bench.exact, bench.names[:SHAKEN]
    still, session = bench.draw(way, prompts, lab=lab), lab.session(lora=way.lora)[0]
    return lab.distances(still, lab.paint(moved(session, prompts, lab.batch_size), lora=way.lora, **options_of(way)))


def moved(session: Session, prompts: Sequence[Prompt], batch_size: int) -> list[Given]:
    """The prompts with their seeds' noise z as sqrt(1 - e^2) z + e n; what is added on the way stays the same."""
    shape, batches = session.facts.latent_shape(session.facts.size, session.facts.size), []
    for first in range(0, len(prompts), batch_size):
        texts = [prompt.text for prompt in prompts[first : first + batch_size]]
        seeds = tuple(range(first, first + len(texts)))
        z, n = ImageNoise(seeds, shape)(), ImageNoise([OTHER_NOISE + seed for seed in seeds], shape)()
        batches.append(Given(embedded(session, texts), (1 - CHANGED**2) ** 0.5 * z + CHANGED * n, seeds))
    return batches


def worst_sheet(
    order: Sequence[int], prompts: Sequence[Prompt], far: Tensor, drawings: dict[str, RowPictures]
) -> Image.Image:
    """The worst pictures, a row each, beside the others' from the same noise."""
    firsts = {name: row.first(max(order) + 1) for name, row in drawings.items()}
    rows = [
        SheetRow(f"LPIPS {far[i]:.2f}", wrapped(prompts[i].text), [images[i] for images in firsts.values()])
        for i in order
    ]
    return grid(rows, list(firsts), CELL)


def inputs_text(section: Figures) -> str:
    """Inaccuracy and instability."""
    table = text_table(
        ("drawn with", "median LPIPS to DDIM", "worst tenth", "median LPIPS x 1000 of the change", "worst tenth"),
        [[code(row), *(value_text(row[key], digits=3) for key in KEYS[:2]),
                *(value_text(row[key], 1000, 2) for key in KEYS[2:])]
         for row in section["rows"]],
    )  # fmt: skip
    return f"{table}\n\n{picture('worst', 'the pictures furthest from the ODE’s, beside the others')}"


def times_the_median(section: Figures, name: str) -> float:
    """How many times as far from the ODE's the worst tenth is as half of the pictures are."""
    row = row_of(section, name)
    return float(row["far_worst"]["value"] / max(row["far"]["value"], 1e-9))


def inputs_verdict(section: Figures) -> tuple[str, str]:
    """What was measured, and what came out."""
    row = row_of(section, section["student"])
    return (
        f"LPIPS of the worst tenth to the ODE's pictures, `{section['student']}` less the teacher",
        change_text(row["far_worst_change"], digits=3),
    )
