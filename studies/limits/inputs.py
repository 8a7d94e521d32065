"""Limit 4: some inputs are drawn worse, or shaken more."""

from collections.abc import Mapping, Sequence

from PIL import Image
from torch import Tensor

from fewstep.diffusion.sampler import ImageNoise
from fewstep.evaluate.prompts import Prompt
from fewstep.evaluate.report import text_table
from fewstep.evaluate.row_pictures import RowPictures
from fewstep.metrics.estimate import Estimate
from fewstep.session import Session
from fewstep.sheets import SheetRow, grid, wrapped
from studies.lab import Given, embedded
from studies.limits.bench import (
    CELL,
    DECILE,
    STUDENT_STEPS,
    TEACHER,
    TRUTH,
    Bench,
    Measured,
    lcm,
    median,
    of_values,
    shipped,
    with_changes,
    worst_decile,
)
from studies.limits.words import (
    Figures,
    bullets,
    change_text,
    code,
    listed,
    picture,
    row_of,
    sign,
    sorted_out,
    value_text,
)

CHANGED = 0.1  # section 4: of a picture's noise
OTHER_NOISE = 1_000_000  # its seeds begin here
WORST = 8  # of them shown


def inputs(bench: Bench) -> Measured:
    """How far each picture is from the ODE's own, and how far a slightly other noise moves it."""
    lab, prompts = bench.lab, shipped(bench)
    truth = bench.draw(TRUTH, prompts)
    rows, far, drawings = [], {}, {}
    teacher: list[Estimate] = []
    for way in (TEACHER, *map(lcm, STUDENT_STEPS)):
        pictures = drawings[way.name] = bench.draw(way, prompts)
        far[way.name] = lab.distances(pictures, truth)
        session = lab.session(lora=way.lora)[0]
        moved = lab.paint(shaken(session, prompts, lab.batch_size), lora=way.lora, **way.options)
        apart = lab.distances(pictures, moved)
        values = [of_values(what, those) for those in (far[way.name], apart) for what in (median, worst_decile)]
        teacher = teacher or values
        names = ("far", "far_worst", "apart", "apart_worst")
        rows.append({"drawn_with": way.name, **with_changes(names, values, teacher)})
    order = far[lcm(4).name].argsort(descending=True).tolist()
    figures = {
        "truth": TRUTH.name,
        "teacher": TEACHER.name,
        "student": lcm(4).name,
        "changed": CHANGED,
        "rows": rows,
        "worst": [{"prompt": prompts[i].text, "lpips": float(far[lcm(4).name][i])} for i in order[:WORST]],
        "styles": styles_among([str(prompts[i].style) for i in order]),
    }
    return Measured(figures, {"worst": worst_sheet(order[:WORST], prompts, far, {TRUTH.name: truth, **drawings})})


def shaken(session: Session, prompts: Sequence[Prompt], batch_size: int) -> list[Given]:
    """The prompts with their seeds' noise z as sqrt(1 - e^2) z + e n; what is added on the way stays the same."""
    shape, batches = session.facts.latent_shape(session.facts.size, session.facts.size), []
    for first in range(0, len(prompts), batch_size):
        texts = [prompt.text for prompt in prompts[first : first + batch_size]]
        seeds = tuple(range(first, first + len(texts)))
        z, n = ImageNoise(seeds, shape)(), ImageNoise([OTHER_NOISE + seed for seed in seeds], shape)()
        batches.append(Given(embedded(session, texts), (1 - CHANGED**2) ** 0.5 * z + CHANGED * n, seeds))
    return batches


def styles_among(ordered: Sequence[str]) -> dict[str, dict[str, int]]:
    """Of each style how many pictures there are, and how many in the worst tenth; worst first in `ordered`."""
    worst = ordered[: -(-len(ordered) // DECILE)]
    return {style: {"all": ordered.count(style), "worst": worst.count(style)} for style in sorted(set(ordered))}


def worst_sheet(
    order: Sequence[int], prompts: Sequence[Prompt], far: dict[str, Tensor], drawings: dict[str, RowPictures]
) -> Image.Image:
    """The worst pictures, a row each, beside the others' from the same noise."""
    firsts = {name: row.first(max(order) + 1) for name, row in drawings.items()}
    rows = [
        SheetRow(
            f"LPIPS {far[lcm(4).name][i]:.2f}", wrapped(prompts[i].text), [images[i] for images in firsts.values()]
        )
        for i in order
    ]
    return grid(rows, list(firsts), CELL)


def inputs_text(section: Figures) -> str:
    """Inaccuracy and instability."""
    table = text_table(
        ("drawn with", "median LPIPS to DDIM", "worst tenth", "median LPIPS x 1000 of the change", "worst tenth"),
        [[code(row), *(value_text(row[key], digits=3) for key in ("far", "far_worst")),
                *(value_text(row[key], 1000, 2) for key in ("apart", "apart_worst"))]
         for row in section["rows"]],
    )  # fmt: skip
    worst = ", ".join(f"{one['prompt']} ({one['lpips']:.2f})" for one in section["worst"])
    lines = [*of_tails(section), *of_shaking(section), of_worst_styles(section["styles"], section["student"]),
             f"The worst of `{section['student']}`: {worst}."]  # fmt: skip
    return f"{table}\n\n{bullets(lines)}\n\n{picture('worst', 'the worst pictures, beside the others')}"


def of_tails(section: Figures) -> list[str]:
    """How much worse the worst tenth is."""
    student, teacher = (row_of(section, section[name]) for name in ("student", "teacher"))
    times = [
        f"{row['far_worst']['value'] / row['far']['value']:.1f} times the median of {code(row)}"
        for row in (student, teacher)
        if row["far"]["value"] > 0
    ]
    words = {1: "further than the teacher's", -1: "nearer than the teacher's", 0: "not told from the teacher's"}
    return [
        f"The worst tenth is {' and '.join(times)} from `{section['truth']}`." if times else
        f"Most pictures are those of `{section['truth']}`.",
        f"The worst tenth of `{section['student']}` is {words[sign(student['far_worst_change'])]}:"
        f" {change_text(student['far_worst_change'], digits=3)}.",
    ]  # fmt: skip


def of_shaking(section: Figures) -> list[str]:
    """What a little other noise does to students, beside the teacher."""
    students = [row for row in section["rows"] if row["drawn_with"] != section["teacher"]]
    words = {1: "less stable than the teacher", -1: "more stable", 0: "not told apart"}
    return [
        f"Noise changed by {100 * section['changed']:g} %, {what}: {sorted_out(students, key, words, code)}."
        for key, what in (("apart_change", "by the median"), ("apart_worst_change", "by the worst tenth"))
    ]


def of_worst_styles(styles: Mapping[str, Figures], student: str) -> str:
    """Where the worst tenth is."""
    total, worst = (sum(style[key] for style in styles.values()) for key in ("all", "worst"))
    shares = {name: style["worst"] / style["all"] for name, style in styles.items() if style["worst"]}
    ordered = sorted(shares, key=lambda name: -shares[name])
    parts = [f"{name} ({styles[name]['worst']} of {styles[name]['all']})" for name in ordered]
    return f"The worst tenth of `{student}`, {worst} of {total} pictures, by style: {listed(parts)}."
