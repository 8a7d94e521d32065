"""Limit 1: a pretrained model is needed, and the student follows it."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.assets import ACCELERATION, MODEL, shipped_model
from fewstep.evaluate.report import text_table
from fewstep.io import atomic_folder, cache_dir
from fewstep.models.model import parts_sha256
from studies.limits.bench import TEACHER, TINY, Bench, Measured, Quality, all_base, judged, lcm, shipped
from studies.limits.words import Figures, bullets, change_text, listed, sign, value_text

NOISY = (0.05, 0.1, 0.2)  # section 1: shares of the teacher's weights that are noise


class Teaching(NamedTuple):
    """A teacher and its student."""

    name: str
    model: str
    lora: str


def pretrained(bench: Bench) -> Measured:
    """Teachers, their students, and what becomes of both as the teacher's weights turn into noise."""
    pairs = [Teaching("as shipped", MODEL, ACCELERATION)]
    pairs += [Teaching(name_of(model), model, lora) for model, lora in bench.earlier]
    pairs += [Teaching(f"{100 * a:g} % noise", str(noisy_model(a)), ACCELERATION) for a in NOISY]
    prompts, target = shipped(bench), all_base(bench.lab)
    rows: list[dict[str, Any]] = []
    first: tuple[Quality, Quality] | None = None
    for pair in pairs:
        teacher, student = (
            judged(bench, bench.draw(way, prompts, pair.model), prompts, target)
            for way in (TEACHER, lcm(4)._replace(lora=(pair.lora,)))
        )
        first = first or (teacher, student)
        rows.append({
            "name": pair.name,
            "teacher": teacher.numbers,
            "student": student.numbers,
            "gap": student.less(teacher).numbers,
            "teacher_change": teacher.less(first[0]).numbers,
            "student_change": student.less(first[1]).numbers,
        })  # fmt: skip
    return Measured({"teacher": TEACHER.name, "student": lcm(4).name, "rows": rows}, {})


def name_of(model: str) -> str:
    """A model's folder's name, or of one called model, as a training leaves it, the folder's above."""
    path = Path(model)
    return path.parent.name if path.name == "model" else path.stem


def noisy_model(share_of_noise: float) -> Path:
    """The embedded model with UNet weights (1 - a) W + a n, n Gaussian of W's own size, tensor by tensor; kept."""
    model = shipped_model(MODEL)
    assert model is not None
    out = cache_dir() / "limits" / f"noisy-{share_of_noise:g}-{parts_sha256(model)[:12]}"
    if not out.exists():
        generator = torch.Generator().manual_seed(0)
        with atomic_folder(out) as folder:
            shutil.copytree(model, folder, dirs_exist_ok=True)
            for file in sorted((folder / "unet").glob("*.safetensors")):
                weights = {key: noised(W, share_of_noise, generator) for key, W in sorted(load_file(file).items())}
                save_file(weights, file, {"format": "pt"})
    return out


def noised(W: Tensor, a: float, generator: torch.Generator) -> Tensor:
    """(1 - a) W + a n with |n| = |W|."""
    exact = W.double()
    n = torch.randn(exact.shape, generator=generator, dtype=torch.float64)
    return torch.lerp(exact, n * exact.norm() / n.norm().clamp(min=TINY), a).to(W.dtype)


def pretrained_text(section: Figures) -> str:
    """Teachers and students."""
    columns = (
        "teacher", "agreement %", "distance", "its student's agreement %", "distance", "student less teacher, points",
        "distance",
    )  # fmt: skip
    table = text_table(columns, [
        [row["name"],
         *(text for who in ("teacher", "student")
           for text in (value_text(row[who]["agreement"], 100), value_text(row[who]["distance"]))),
         change_text(row["gap"]["agreement"], 100), change_text(row["gap"]["distance"])]
        for row in section["rows"]
    ])  # fmt: skip
    return f"{table}\n\n{bullets([of_gaps(section['rows']), *of_followers(section['rows'])])}"


def of_gaps(rows: Sequence[Figures]) -> str:
    """Whether a student is better than its teacher."""
    above = [row["name"] for row in rows if sign(row["gap"]["agreement"]) > 0]
    nearer = [row["name"] for row in rows if sign(row["gap"]["distance"]) < 0]
    verdict = "Nothing here speaks against the limit" if not above and not nearer else "Here the limit is no law"
    return (
        f"Better than its teacher for certain, by agreement: {listed(above)}; by distance: {listed(nearer)}. {verdict}."
    )


def of_followers(rows: Sequence[Figures]) -> list[str]:
    """Whether students go where their teachers go, from the first row's."""
    lines = []
    for key, scale, unit in (("agreement", 100, " points"), ("distance", 1, "")):
        others = [(row, sign(row["teacher_change"][key])) for row in rows[1:]]
        moved = [(row, way) for row, way in others if way]
        after = [row for row, way in moved if sign(row["student_change"][key]) == way]
        against = [row for row, way in moved if sign(row["student_change"][key]) == -way]
        if not moved:
            lines.append(f"By {key} no other teacher here is told from the shipped one.")
            continue
        furthest = max((row for row, _ in moved), key=lambda row: abs(row["teacher_change"][key]["value"]))
        lines.append(
            f"By {key} {len(moved)} of {len(others)} other teachers differ from the shipped one for certain; of their"
            f" students {len(after)} differ the same way for certain, {len(against)} the other way. The"
            f" furthest, {furthest['name']}: teacher {change_text(furthest['teacher_change'][key], scale)}{unit},"
            f" student {change_text(furthest['student_change'][key], scale)}{unit}."
        )
    return lines
