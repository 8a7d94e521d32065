"""Limit 5: speed against quality."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from PIL import Image

from fewstep.evaluate.plots import COLOURS, MARKERS, check_matplotlib
from fewstep.evaluate.report import text_table
from fewstep.evaluate.row_pictures import RowPictures
from fewstep.metrics.estimate import Estimate
from studies.limits.bench import TEACHER, TRUTH, Bench, Measured, Way, lcm, mean, of_values, sharper, with_changes
from studies.limits.words import Figures, change_text, code, sign, value_text

LCM_STEPS, TEACHER_STEPS = (1, 2, 4, 8, 16), (4, 8, 16, 25)
KEYS = ("agreement", "sharpness", "lpips")
GAINS = ("agreement", "sharpness")  # more of these is better


def speed(bench: Bench) -> Measured:
    """Quality of student and teacher at many numbers of steps; changes are from the next fewer."""
    rows: list[dict[str, Any]] = []
    for ways in ([lcm(n) for n in LCM_STEPS], [Way(TEACHER.solver, n) for n in TEACHER_STEPS]):
        before: tuple[Estimate, ...] = ()
        for way in ways:
            pictures = bench.draw(way, bench.names)
            values = quality(bench, pictures)
            facts = {"solver": way.solver, "steps": way.steps, "drawn_with": way.name, "nfe": pictures.nfe}
            named = with_changes(KEYS, values, before) if before else {
                key: value.numbers for key, value in zip(KEYS, values, strict=True)}  # fmt: skip
            rows.append(facts | named)
            before = values
    return Measured({"truth": TRUTH.name, "rows": rows}, {"steps": steps_plot(rows)})


def quality(bench: Bench, pictures: RowPictures) -> tuple[Estimate, ...]:
    """Each of KEYS."""
    truth = bench.draw(TRUTH, bench.names)
    lpips = of_values(mean, bench.lab.distances(pictures, truth))
    return bench.lab.agreement(pictures, bench.names), sharper(pictures, truth), lpips


def speed_text(section: Figures) -> str:
    """Steps."""
    titles = ("drawn with", "NFE", "agreement %", "change", "sharpness", "change", "LPIPS to DDIM")
    return text_table(titles, [
        [code(row), f"{row['nfe']:g}", value_text(row["agreement"], 100), own_change(row, "agreement", 100, 1),
         value_text(row["sharpness"], digits=2), own_change(row, "sharpness", 1, 2), value_text(row["lpips"], digits=3)]
        for row in section["rows"]
    ])  # fmt: skip


def own_change(row: Figures, key: str, scale: float, digits: int) -> str:
    """From the row above, which the fewest steps have not."""
    found = row.get(f"{key}_change")
    return change_text(found, scale, digits) if found else ""


def last_gain(section: Figures) -> int:
    """The student's steps after which twice as many add neither agreement nor sharpness for certain."""
    own = [row for row in section["rows"] if row["solver"] == lcm(1).solver]
    gains = [row["steps"] for row in own[1:] if any(sign(row[f"{key}_change"]) > 0 for key in GAINS)]
    return int(max(gains, default=own[0]["steps"]))


def speed_verdict(section: Figures) -> tuple[str, str]:
    """What was measured, and what came out."""
    return "steps beyond which twice as many add neither agreement nor sharpness for certain", str(last_gain(section))


PANELS = {
    "agreement": ("agreement, % (higher is better)", 100),
    "sharpness": ("sharpness beside DDIM-100", 1),
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
