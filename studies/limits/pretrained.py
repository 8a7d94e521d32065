"""Limit 1: a pretrained model is needed, and the student follows it."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.assets import MODEL, shipped_model
from fewstep.evaluate.report import text_table
from fewstep.io import atomic_folder, cache_dir
from fewstep.metrics.estimate import Estimate
from fewstep.models.model import parts_sha256
from studies.limits.bench import STUDENT, TEACHER, TINY, Bench, Measured, sharper, with_changes
from studies.limits.words import Figures, change_text, value_text

NOISY = (0.0, 0.05, 0.1)  # shares of the teacher's weights that are noise


def pretrained(bench: Bench) -> Measured:
    """What becomes of a teacher and its student as the weights turn into noise."""
    rows, first = [], list[Estimate]()
    for share in NOISY:
        model = str(noisy_model(share)) if share else MODEL
        teacher, student = (bench.draw(way, bench.names, model) for way in (TEACHER, STUDENT))
        values = [bench.lab.agreement(pictures, bench.names) for pictures in (teacher, student)]
        first = first or values
        rows.append({
            "noise": share,
            **with_changes(("teacher", "student"), values, first),
            "gap": values[1].less(values[0]).numbers,
            "sharpness": sharper(student, teacher).numbers,
        })  # fmt: skip
    return Measured({"teacher": TEACHER.name, "student": STUDENT.name, "rows": rows}, {})


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
    titles = ("noise in the weights", "agreement %, teacher", "student", "student less teacher", "sharpness")
    return text_table(titles, [
        [f"{100 * row['noise']:g} %", *(value_text(row[who], 100) for who in ("teacher", "student")),
         change_text(row["gap"], 100), value_text(row["sharpness"], digits=2)]
        for row in section["rows"]
    ])  # fmt: skip


def pretrained_verdict(section: Figures) -> tuple[str, str]:
    """What was measured, and what came out."""
    row = section["rows"][-1]
    changes = [change_text(row[f"{who}_change"], 100) for who in ("teacher", "student")]
    return (
        f"agreement lost with {100 * row['noise']:g} % noise in the weights",
        f"teacher {changes[0]}, student {changes[1]} points",
    )
