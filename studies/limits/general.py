"""Limit 6: styles, words, sketches."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fewstep.assets import STYLES, shipped_kit
from fewstep.evaluate.measure import labelled_pictures
from fewstep.evaluate.prompts import Prompt, bare_prompts, shipped_prompts, things
from fewstep.evaluate.report import text_table
from fewstep.evaluate.row_pictures import RowPictures
from fewstep.images import read_image, to_image
from fewstep.metrics.estimate import Estimate, share
from fewstep.metrics.frechet import Statistics
from fewstep.metrics.reference import agreement_with
from fewstep.sheets import SheetRow, grid, wrapped
from recipes.emoji.captions import main_caption
from recipes.emoji.sheet import OWN_WORDS
from studies.lab import Lab, base_styles, drawings_of, take
from studies.limits.bench import CELL, TEACHER, Bench, Measured, all_base, lcm, mean, of_values, with_changes
from studies.limits.words import Figures, bullets, change_text, code, picture, sign, sorted_out, value_text

STYLE_WEIGHT = 0.8  # section 6
SKETCHED, COLOURED = "emojione-bw", "emojione"  # one person's lines, without and with colour
STRENGTHS = (0.5, 0.8)
SHEET_SKETCHES = 4


def styled(style: str) -> tuple[Prompt, ...]:
    """Every thing in that style."""
    return tuple(Prompt(main_caption(style, thing), style, concept) for concept, thing in things().items())


def general(bench: Bench) -> Measured:
    """Student beside teacher over styles, ways of wording, and sketches to start from."""
    lab, rows = bench.lab, []
    together = all_base(lab)
    for style in base_styles():
        rows.append(compared(bench, "style", style, styled(style), drawings_of(lab.reference, [style])))
    for style in STYLES:
        lora, target = f"{style}:{STYLE_WEIGHT:g}", drawings_of(lab.reference, [style])
        rows.append(compared(bench, "style", f"{style} by its LoRA", styled(style), target, lora))
    bare, own = bare_prompts(), tuple(Prompt(words) for words in OWN_WORDS)
    wordings = {
        "captions that ship": shipped_prompts().prompts,
        f"bare names (“{bare[0].text}”)": bare,
        f"a person's own (“{own[0].text}”)": own,
    }
    rows += [compared(bench, "words", name, prompts, together) for name, prompts in wordings.items()]
    sketches, sheet = of_sketches(bench)
    figures = {"teacher": TEACHER.name, "student": lcm(4).name, "rows": rows, **sketches}
    return Measured(figures, {"sketches": sheet})


def compared(
    bench: Bench, group: str, name: str, prompts: Sequence[Prompt], target: Statistics, *loras: str
) -> dict[str, Any]:
    """One line: teacher and student on these prompts, from the same noise."""
    prompts = take(prompts, bench.images)
    drawings = [bench.draw(way, prompts) for way in (TEACHER._replace(lora=loras), lcm(4, *loras))]
    distances = [bench.lab.distance(pictures, target) for pictures in drawings]
    row = {
        "group": group,
        "name": name,
        "teacher_distance": distances[0].numbers,
        "student_distance": distances[1].numbers,
        "distance_relative": distances[1].relative(distances[0]).numbers,
        "lpips": of_values(mean, bench.lab.distances(*drawings)).numbers,
    }
    if not any(prompt.concept for prompt in prompts):
        return row
    teacher, student = (bench.lab.agreement(pictures, prompts) for pictures in drawings)
    agreements = {"teacher_agreement": teacher, "student_agreement": student, "agreement_change": student.less(teacher)}
    return row | {key: value.numbers for key, value in agreements.items()}


def of_sketches(bench: Bench) -> tuple[dict[str, Any], Image.Image]:
    """Pictures from black and white drawings, in every coloured style, by student and teacher.

    Agreement counts only drawings by other hands than the sketch's, which would vouch for what it was given.
    """
    styles = [style for style in base_styles() if style != SKETCHED]
    sketches = [prompt for prompt in shipped_prompts().prompts if prompt.style == SKETCHED]
    sketches = sketches[: max(-(-bench.images // len(styles)), 2)]
    files = [shipped_kit() / "drawings" / SKETCHED / f"{sketch.concept}.webp" for sketch in sketches]
    families, target = {SKETCHED: COLOURED}, drawings_of(bench.lab.reference, styles)
    asked = [
        [Prompt(main_caption(style, things()[str(sketch.concept)]), SKETCHED, sketch.concept)
         for style in styles]
        for sketch in sketches
    ]  # fmt: skip
    prompts, size = list(chain.from_iterable(asked)), bench.lab.session()[0].facts.size
    originals = [read_image(file, size, size) for file in files]
    rows, columns = [], {"the sketch": [to_image(pixels) for pixels in originals]}
    for strength in STRENGTHS:
        teacher: list[Estimate] = []
        for way in (TEACHER, lcm(4)):
            parts = [
                bench.draw(way, those, image=file, strength=strength, seed=len(styles) * i)
                for i, (file, those) in enumerate(zip(files, asked, strict=True))
            ]
            pictures = joined(parts)
            far = [far_from(bench.lab, part, original) for part, original in zip(parts, originals, strict=True)]
            values = [
                of_values(mean, torch.cat(far)),
                bench.lab.agreement(pictures, prompts, families),
                bench.lab.distance(pictures, target),
            ]
            teacher = teacher or values
            numbers = with_changes(("lpips", "agreement", "distance"), values, teacher)
            rows.append({"strength": strength, "drawn_with": way.name, **numbers})
            columns[f"{way.name}\nat {strength:g}"] = [part.first(1)[0] for part in parts]
    figures = {
        "sketches": len(sketches),
        "sketch_styles": len(styles),
        "sketch_agreement": of_originals(bench, originals, sketches, families).numbers,
        "sketch_rows": rows,
    }
    return figures, sketch_sheet([those[0].text for those in asked], columns)


def joined(parts: Sequence[RowPictures]) -> RowPictures:
    """One after another."""
    files = tuple(chain.from_iterable(part.files for part in parts))
    details = tuple(chain.from_iterable(part.facts for part in parts))
    return parts[0]._replace(files=files, facts=details)


def far_from(lab: Lab, pictures: RowPictures, original: Tensor) -> Tensor:
    """LPIPS of each picture to one image (3, H, W)."""
    return torch.cat([lab.between(batch, original.expand_as(batch)) for batch in pictures.batches()])


def of_originals(
    bench: Bench, originals: Iterable[Tensor], sketches: Sequence[Prompt], families: dict[str, str]
) -> Estimate:
    """The agreement of the sketches themselves."""
    lab = bench.lab
    device = next(lab.efficientnet.parameters()).device
    pictures = labelled_pictures(lab.efficientnet(torch.stack(list(originals)).to(device)).cpu(), sketches)
    assert pictures is not None
    return share(agreement_with(pictures, lab.reference, families).hits)


def sketch_sheet(prompts: Sequence[str], columns: dict[str, list[Image.Image]]) -> Image.Image:
    """The first few, a row each."""
    rows = [SheetRow("", wrapped(prompt), [pictures[i] for pictures in columns.values()])
            for i, prompt in enumerate(prompts[:SHEET_SKETCHES])]  # fmt: skip
    return grid(rows, list(columns), CELL)


def general_text(section: Figures) -> str:
    """Styles, words, sketches."""
    rows = section["rows"]
    table = text_table(
        ("prompts", "agreement %, teacher", "student", "change, points", "distance, teacher", "student", "change, %",
         "LPIPS between them"),
        [general_cells(row) for row in rows],
    )  # fmt: skip
    lines = [
        line for group, what in GROUPS.items() for line in of_group([r for r in rows if r["group"] == group], what)
    ]
    sketches = text_table(
        ("strength", "drawn with", "LPIPS to the sketch", "agreement %", "distance"),
        [[f"{row['strength']:g}", code(row), value_text(row["lpips"], digits=3), value_text(row["agreement"], 100),
          value_text(row["distance"])] for row in section["sketch_rows"]],
    )  # fmt: skip
    return "\n\n".join([
        table,
        bullets(lines),
        f"From sketches: {section['sketches']} black and white drawings that ship, each in"
        f" {section['sketch_styles']} other styles. The sketches themselves have an agreement of"
        f" {value_text(section['sketch_agreement'], 100)} %.",
        sketches,
        bullets(of_strengths(section)),
        picture("sketches", "sketches and what was made of them"),
    ])  # fmt: skip


GROUPS = {"style": "styles", "words": "ways of wording"}


def general_cells(row: Figures) -> list[str]:
    """One line."""
    judged = "agreement_change" in row
    agreements = [value_text(row["teacher_agreement"], 100), value_text(row["student_agreement"], 100),
                  change_text(row["agreement_change"], 100)] if judged else ["–"] * 3  # fmt: skip
    return [row["name"], *agreements, value_text(row["teacher_distance"]), value_text(row["student_distance"]),
            change_text(row["distance_relative"], 100), value_text(row["lpips"], digits=3)]  # fmt: skip


def of_group(rows: Sequence[Figures], what: str) -> list[str]:
    """How evenly the student does over styles, or ways of wording."""
    if not rows:
        return []
    spread = sorted(rows, key=lambda row: row["distance_relative"]["value"])
    judged = [row for row in rows if "agreement_change" in row]
    lines = [
        f"Over {what}, by distance, the student is "
        + sorted_out(rows, "distance_relative", {1: "worse than the teacher", -1: "better", 0: "not told apart"})
        + f". From {change_text(spread[0]['distance_relative'], 100)} % ({spread[0]['name']}) to"
        f" {change_text(spread[-1]['distance_relative'], 100)} % ({spread[-1]['name']})."
    ]
    if judged:
        words = {-1: "worse than the teacher", 1: "better", 0: "not told apart"}
        lines.append(f"Over {what}, by agreement: {sorted_out(judged, 'agreement_change', words)}.")
    return lines


def of_strengths(section: Figures) -> list[str]:
    """Student beside teacher from sketches."""
    lines = []
    for row in section["sketch_rows"]:
        if row["drawn_with"] != section["student"]:
            continue
        stays = {1: "less of the sketch stays than with the teacher", -1: "more of the sketch stays", 0: "as much of"
                 " the sketch stays as can be told"}[sign(row["lpips_change"])]  # fmt: skip
        shows = {1: "more", -1: "less", 0: "neither more nor less, for all that can be told,"}[
            sign(row["agreement_change"])
        ]
        lines.append(
            f"At strength {row['strength']:g}: {stays} (LPIPS {change_text(row['lpips_change'], digits=3)});"
            f" the student draws {shows} of what was asked for ({change_text(row['agreement_change'], 100)} points)."
        )
    return lines
