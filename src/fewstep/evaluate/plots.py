"""Plots of quality over cost (needs matplotlib, from the optional extra `metrics`)."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from fewstep.errors import FewstepError
from fewstep.evaluate.table import Row, short

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's colours
MARKERS = "osD^vP*X"
QUALITY = {
    "kid_t": "KID-T x 1000 (lower is nearer the teacher)",
    "sharpness": "sharpness over the teacher's",
    "fid": "FID (lower is better)",
    "kid": "KID x 1000 (lower is better)",
    "efficientnet_distance": "EfficientNet distance (lower is better)",
    "agreement": "agreement, % (higher is better)",
    "clip_score": "CLIP score (higher is better)",
    "lpips_teacher": "LPIPS to teacher (lower is nearer)",
    "diversity": "diversity (higher is more diverse)",
    "efficientnet_score": "EfficientNet score (higher is better)",
}
SCALE = {"kid": 1000, "kid_t": 1000, "agreement": 100}
COLUMNS = 3  # panels side by side
LEGEND_LINE, LONGEST = 0.24, 44  # inches, and letters of a row's name in it


def check_matplotlib() -> None:
    """Raise FewstepError unless matplotlib is installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise FewstepError(
            "the plots need matplotlib, which is not installed", "pip install 'matplotlib>=3.9', or 'fewstep[metrics]'"
        ) from None


def measured(rows: Sequence[Row]) -> list[str]:
    """The quality measures that all rows have."""
    return [key for key in QUALITY if all(row.get(key) is not None for row in rows)]


def plot(path: Path, rows: Sequence[Row], cost: str, label: str, scale: float = 1) -> None:
    """Save a PNG with one panel for each measured quality, over the rows' `cost` times `scale` on a log axis."""
    from matplotlib.figure import Figure

    qualities = measured(rows)
    columns = min(len(qualities), COLUMNS)
    lines = -(-len(qualities) // columns)
    legend = LEGEND_LINE * -(-len(rows) // columns)
    figure = Figure(figsize=(5.2 * columns, 4.4 * lines + legend), layout="constrained")
    for number, quality in enumerate(qualities, 1):
        axes = figure.add_subplot(lines, columns, number)
        panel(axes, [(shortened(row["row"]), scale * row[cost], SCALE.get(quality, 1) * row[quality]) for row in rows])
        axes.set_xlabel(label)
        axes.set_ylabel(QUALITY[quality])
    handles, names = axes.get_legend_handles_labels()  # the same in every panel
    figure.legend(handles, names, loc="outside upper left", ncols=columns, frameon=False)
    figure.savefig(path, format="png", dpi=110)  # uses the Agg canvas, which needs no screen


def shortened(row: str) -> str:
    """A row as it stands in the legend, its end kept: the weights tell rows apart."""
    name = short(row)
    return name if len(name) <= LONGEST else f"{name[: LONGEST // 3]}...{name[-(LONGEST * 2 // 3 - 3) :]}"


def panel(axes: Any, points: Sequence[tuple[str, float, float]]) -> None:
    """Draw points on matplotlib's axes. points: name for the legend, x, y."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    for (text, x, y), colour, marker in zip(points, cycle(COLOURS), cycle(MARKERS)):
        axes.plot([x], [y], marker=marker, color=colour, markersize=9, linestyle="", label=text)
    axes.margins(0.12)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
