"""Limit 5: speed against quality."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from PIL import Image

from fewstep.assets import MODEL
from fewstep.evaluate.plots import COLOURS, MARKERS, check_matplotlib
from fewstep.evaluate.report import text_table
from fewstep.metrics.estimate import Estimate
from studies.limits.bench import TEACHER, TRUTH, Bench, Measured, Way, all_base, judged, lcm, mean, of_values, shipped
from studies.limits.words import Figures, bullets, code, listed, picture, sign, value_text

LCM_STEPS, TEACHER_STEPS = (1, 2, 3, 4, 6, 8, 12, 16), (4, 8, 16, 25)  # section 5


def speed(bench: Bench) -> Measured:
    """Quality, evaluations and time of student and teacher at many numbers of steps."""
    prompts, target = shipped(bench), all_base(bench.lab)
    truth = bench.draw(TRUTH, prompts)
    rows: list[dict[str, Any]] = []
    for ways in ([lcm(n) for n in LCM_STEPS], [Way(TEACHER.solver, n) for n in TEACHER_STEPS]):
        texts = [prompt.text for prompt in prompts]
        drawings = [bench.lab.timed(bench.draw(way, prompts), texts, MODEL, way.lora) for way in ways]
        values = [
            {**judged(bench, pictures, prompts, target)._asdict(),
             "lpips": of_values(mean, bench.lab.distances(pictures, truth))}
            for pictures in drawings
        ]  # fmt: skip
        best = {key: best_of(key, [value[key] for value in values]) for key in values[0]}
        rows += [
            {"solver": way.solver, "steps": way.steps, "drawn_with": way.name, "nfe": pictures.nfe,
             "time_s": sum(pictures.split_s.values())}
            | {key: value[key].numbers for key in value}
            | {f"{key}_behind": behind(key, value[key], best[key]).numbers for key in value}
            for way, pictures, value in zip(ways, drawings, values, strict=True)
        ]  # fmt: skip
    return Measured({"truth": TRUTH.name, "rows": rows}, {"steps": steps_plot(rows)})


def best_of(key: str, values: Sequence[Estimate]) -> Estimate:
    """Agreement is better the larger it is, the distances the smaller they are."""
    return (max if key == "agreement" else min)(values, key=lambda value: value.value)


def behind(key: str, value: Estimate, best: Estimate) -> Estimate:
    """By how much it is worse than the best, at least 0."""
    return best.less(value) if key == "agreement" else value.less(best)


def speed_text(section: Figures) -> str:
    """Steps."""
    table = text_table(
        ("drawn with", "NFE", "ms an image", "agreement %", "distance", "LPIPS to DDIM"),
        [[code(row), f"{row['nfe']:g}", f"{1000 * row['time_s']:.1f}", value_text(row["agreement"], 100),
          value_text(row["distance"]), value_text(row["lpips"], digits=3)] for row in section["rows"]],
    )  # fmt: skip
    lines = []
    for solver in dict.fromkeys(row["solver"] for row in section["rows"]):
        own = [row for row in section["rows"] if row["solver"] == solver]
        lines += [of_steps(solver, own, key, what) for key, what in MEASURES.items()]
    plot = picture("steps", "agreement, distance and LPIPS over network evaluations")
    return f"{table}\n\n{bullets(lines)}\n\n{plot}"


MEASURES = {"agreement": "agreement", "distance": "distance", "lpips": "LPIPS to the teacher's own path"}


def of_steps(solver: str, rows: Sequence[Figures], key: str, what: str) -> str:
    """Where more steps stop helping, and where they begin to hurt."""
    best = (max if key == "agreement" else min)(rows, key=lambda row: row[key]["value"])
    level = next(row for row in rows if sign(row[f"{key}_behind"]) <= 0)
    hurt = [row["steps"] for row in rows if row["steps"] > best["steps"] and sign(row[f"{key}_behind"]) > 0]
    helps = (
        (
            f"more steps help up to {best['steps']}, the best here"
            if best is not rows[0]
            else f"the fewest steps tried, {best['steps']}, are the best"
        )
        if level is best
        else f"more steps than {level['steps']} are not told to help (the best value is that of {best['steps']})"
    )
    last = rows[-1]
    if hurt:
        hurts = f"for certain worse than the best at {listed([str(steps) for steps in hurt])} steps"
    elif best is last:
        hurts = "none was tried beyond"
    else:
        hurts = f"up to {last['steps']} none hurts for certain"
    return f"{solver}, {what}: {helps}; {hurts}."


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
