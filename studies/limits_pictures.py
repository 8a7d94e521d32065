"""The plot of quality over steps in docs/limits.md."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from PIL import Image

from fewstep.evaluate.plots import COLOURS, MARKERS, check_matplotlib

PANELS = {
    "agreement": ("agreement, % (higher is better)", 100),
    "distance": ("distance to real drawings (lower is better)", 1),
    "lpips": ("LPIPS to DDIM-100 (lower is nearer)", 1),
}


def steps_plot(rows: Sequence[Mapping[str, Any]]) -> Image.Image:
    """A panel for each measure over network evaluations, a line for each solver, bars of one standard error."""
    check_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained", dpi=90)
    for number, (key, (label, scale)) in enumerate(PANELS.items(), 1):
        axes = figure.add_subplot(1, len(PANELS), number)
        for solver, colour, marker in zip(dict.fromkeys(row["solver"] for row in rows), COLOURS, MARKERS, strict=False):
            own = [row for row in rows if row["solver"] == solver]
            values, errors = ([scale * row[key][part] for row in own] for part in ("value", "error"))
            axes.errorbar([row["nfe"] for row in own], values, errors, color=colour, marker=marker, capsize=2,
                          label=solver)  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("network evaluations an image")
        axes.set_ylabel(label)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    data = BytesIO()
    figure.savefig(data, format="png")
    return Image.open(data).convert("RGB")
