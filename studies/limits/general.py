"""Limit 6: styles, words, sketches."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fewstep.assets import STYLES, shipped_kit
from fewstep.data.prompts import Prompt, shipped_prompts
from fewstep.evaluate.measure import labelled_pictures
from fewstep.evaluate.prompts import things
from fewstep.evaluate.report import text_table
from fewstep.evaluate.row_pictures import RowPictures
from fewstep.images import read_image, to_image
from fewstep.metrics.estimate import Estimate, share
from fewstep.metrics.reference import agreement_with
from fewstep.sheets import SheetRow, grid, wrapped
from recipes.emoji.captions import main_caption
from studies.lab import Lab, base_styles, take, typed
from studies.limits.bench import CELL, STUDENT, TEACHER, Bench, Measured, mean, of_values, sharper, with_changes
from studies.limits.words import Figures, change_text, code, listed, picture, sign, value_text

STYLE_WEIGHT = 0.8
SKETCHED, COLOURED = "emojione-bw", "emojione"  # one person's lines, without and with colour
STRENGTHS = (0.5, 0.8)
SHEET_SKETCHES = 4


def general(bench: Bench) -> Measured:
    """Student beside teacher over ways of wording, styles by LoRA, and sketches to start from."""
    rows = [
        compared(bench, "names of things", bench.names),
        compared(bench, "a person's own words", typed()),
        compared(bench, "captions, style and all", shipped_prompts().prompts),
    ]
    for style in STYLES:
        prompts = tuple(Prompt(main_caption(style, thing), style, concept) for concept, thing in things().items())
        rows.append(compared(bench, f"{style}, by its LoRA", prompts, f"{style}:{STYLE_WEIGHT:g}"))
    sketches, sheet = of_sketches(bench)
    return Measured({"teacher": TEACHER.name, "student": STUDENT.name, "rows": rows, **sketches}, {"sketches": sheet})


def compared(bench: Bench, name: str, prompts: Sequence[Prompt], *loras: str) -> dict[str, Any]:
    """One line: teacher and student on these prompts, from the same noise."""
    prompts = take(prompts, bench.images)
    teacher, student = (bench.draw(way._replace(lora=(*loras, *way.lora)), prompts) for way in (TEACHER, STUDENT))
    row = {
        "name": name,
        "sharpness": sharper(student, teacher).numbers,
        "sharpness_change": sharper(student, teacher).less(sharper(teacher, teacher)).numbers,
        "lpips": of_values(mean, bench.lab.distances(student, teacher)).numbers,
    }
    if not any(prompt.concept for prompt in prompts):
        return row
    agreements = [bench.lab.agreement(pictures, prompts) for pictures in (teacher, student)]
    names = ("teacher", "student")
    return row | with_changes(names, agreements, agreements[:1] * 2)


def of_sketches(bench: Bench) -> tuple[dict[str, Any], Image.Image]:
    """Pictures from black and white drawings, in every coloured style, by student and teacher.

    Agreement counts only drawings by other hands than the sketch's, which would vouch for what it was given.
    """
    styles = [style for style in base_styles() if style != SKETCHED]
    sketches = [prompt for prompt in shipped_prompts().prompts if prompt.style == SKETCHED]
    sketches = sketches[: max(-(-bench.images // len(styles)), 2)]
    files = [shipped_kit() / "drawings" / SKETCHED / f"{sketch.concept}.webp" for sketch in sketches]
    families = {SKETCHED: COLOURED}
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
        for way in (TEACHER, STUDENT):
            parts = [
                bench.draw(way, those, image=file.read_bytes(), strength=strength, seed=len(styles) * i)
                for i, (file, those) in enumerate(zip(files, asked, strict=True))
            ]
            pictures = joined(parts)
            far = [far_from(bench.lab, part, original) for part, original in zip(parts, originals, strict=True)]
            values = [
                of_values(mean, torch.cat(far)),
                bench.lab.agreement(pictures, prompts, families),
            ]
            teacher = teacher or values
            numbers = with_changes(("lpips", "agreement"), values, teacher)
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
    """Words, styles, sketches."""
    table = text_table(
        ("prompts", "agreement %, teacher", "student", "change", "sharpness", "LPIPS between them"),
        [general_cells(row) for row in section["rows"]],
    )
    sketches = text_table(
        ("strength", "drawn with", "LPIPS to the sketch", "change", "agreement %", "change"),
        [[f"{row['strength']:g}", code(row), *(cell for key, scale, digits in (("lpips", 1, 3), ("agreement", 100, 1))
                                               for cell in sketch_cells(row, key, scale, digits, section))]
         for row in section["sketch_rows"]],
    )  # fmt: skip
    return "\n\n".join([
        table,
        f"From sketches: {section['sketches']} black and white drawings that ship, each in"
        f" {section['sketch_styles']} other styles. The sketches' own agreement is"
        f" {value_text(section['sketch_agreement'], 100)} %.",
        sketches,
        picture("sketches", "sketches and what was made of them"),
    ])  # fmt: skip


def general_cells(row: Figures) -> list[str]:
    """One line."""
    agreements = [value_text(row["teacher"], 100), value_text(row["student"], 100),
                  change_text(row["student_change"], 100)] if "student" in row else [""] * 3  # fmt: skip
    return [row["name"], *agreements, value_text(row["sharpness"], digits=2), value_text(row["lpips"], digits=3)]


def sketch_cells(row: Figures, key: str, scale: float, digits: int, section: Figures) -> tuple[str, str]:
    """A value and its change, which the teacher's own row has not."""
    own = row["drawn_with"] == section["teacher"]
    return value_text(row[key], scale, digits), "" if own else change_text(row[f"{key}_change"], scale, digits)


def worse(section: Figures) -> list[str]:
    """On what the student agrees less often with its prompts than its teacher, for certain."""
    lines = [row["name"] for row in section["rows"] if "student" in row and sign(row["student_change"]) < 0]
    return lines + [
        f"sketches at strength {row['strength']:g}"
        for row in section["sketch_rows"]
        if row["drawn_with"] == section["student"] and sign(row["agreement_change"]) < 0
    ]


def general_verdict(section: Figures) -> tuple[str, str]:
    """What was measured, and what came out."""
    return "what the student agrees with less often than its teacher, for certain", listed(worse(section))
