"""Curves of a training run: loss.png and quality.png (needs matplotlib, from the optional extra `metrics`)."""

from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from fewstep.errors import number_of
from fewstep.evaluate.plots import COLOURS, COLUMNS, QUALITY, SCALE, check_matplotlib
from fewstep.io import atomic_path, read_lines

LOSSES = {"loss": "loss", "gradient_norm": "gradient norm, before clipping", "learning_rate": "learning rate"}
OWN = {
    "contrast": "contrast over the teacher's",
    "saturation": "saturation over the teacher's",
}  # measures of previews alone
WIDTH, HEIGHT = 5.2, 3.6  # inches of a panel
LOG = frozenset({"loss", "gradient_norm"})


def plot_curves(out: Path) -> list[Path]:
    """The pictures made of a run's metrics.jsonl and quality.jsonl. Raises FewstepError without matplotlib."""
    check_matplotlib()
    made = []
    if metrics := read_lines(out / "metrics.jsonl"):
        keys = {key for line in metrics for key in line}
        if curves := {label: [(name, name, 1.0)] for name, label in LOSSES.items() if name in keys}:
            made.append(draw_panels(out / "loss.png", metrics, curves, LOG))
    if quality := read_lines(out / "quality.jsonl"):
        curves = {label: of_measure(name, quality) for name, label in (QUALITY | OWN).items()}
        if curves := {label: found for label, found in curves.items() if found}:
            made.append(draw_panels(out / "quality.png", quality, curves))
    return made


def of_measure(measure: str, lines: Sequence[dict[str, Any]]) -> list[tuple[str, str, float]]:
    """Key in the lines, name, and scale of each number of steps in which previews measured it."""
    steps = sorted({int(key.rpartition("_")[2]) for line in lines for key in line if key.rpartition("_")[0] == measure})
    return [(f"{measure}_{n}", number_of(n, "step"), SCALE.get(measure, 1.0)) for n in steps]


def draw_panels(
    path: Path,
    lines: Sequence[dict[str, Any]],
    panels: dict[str, list[tuple[str, str, float]]],
    logarithmic: Set[str] = frozenset(),
) -> Path:
    """Write a panel for each label, with its curves over the steps of training. Returns the path.

    panels: label -> key, name and scale of each curve. logarithmic: keys with an axis of powers.
    """
    from matplotlib.figure import Figure

    columns = min(len(panels), COLUMNS)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows), layout="constrained")
    for number, (label, curves) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, columns, number)
        for (key, name, scale), colour in zip(curves, COLOURS, strict=False):
            points = [(line["step"], scale * line[key]) for line in lines if key in line]
            axes.plot(*zip(*points, strict=True), color=colour, label=name, marker="o" if len(points) < 50 else None)
            if key in logarithmic and min(value for _, value in points) > 0:
                axes.set_yscale("log")
        axes.set_xlabel("steps of training")
        axes.set_ylabel(label)
        if len(curves) > 1:
            axes.legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return path
