"""The words of docs/results.md: tables, and verdicts that follow from the figures in results.json.

`python -m studies.results_page` writes the page anew from the figures that are there.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.evaluate import compare, tune
from fewstep.evaluate.report import text_table
from fewstep.evaluate.table import fid
from fewstep.io import read_json, write_bytes
from studies.pages import DOCS, template

PIECES = {
    "table": "LCM-LoRA beside DDIM, DPM-Solver and DPM-Solver++",
    "controls": "Other steps, other grids, and no LoRA",
    "labels": "Prompts that name no style",
    "figure3": "Styles: the report's Figure 3",
    "grid": "How much style, how much acceleration",
    "finetuned": "A fine-tuned model, with the same LCM-LoRA",
}
FINETUNED = "fxemoji"
STYLE_STEPS, LCM_STEPS = (25, 2, 4, 8, 16, 32), (2, 4, 8)  # of Figure 3; others are held against the first row
STYLE_WEIGHT, FULL = 0.8, 1.0  # the report's, of a style and of lcm
WEIGHTS = "0.4,0.6,0.8,1.0,1.2:0.6,0.8,1.0,1.2"
KNOWN = (("DDIM", "ddim", 32), ("DPM-Solver", "dpm-solver", 16), ("DPM-Solver++", "dpm-solver++", 8),
         ("LCM-LoRA", "lcm", 4))  # fmt: skip
COLUMNS = ("solver", "steps", "time (s)", "FID", "LPIPS")
BARE = "lcm,grid=quadratic:4@1+lcm:0"  # four steps of LCM's sampler without the LoRA
PLAIN = ("ddim:4@best", BARE)  # rows of four steps without an acceleration

FID_4, FID_2, KID_SHARE, AGREEMENT, SPEEDUP = 1.05, 1.3, 0.1, 0.95, 8  # the bars of the table
STYLE, MODEL = 1.15, 1.15  # those of a style and of a fine-tuned model
MET, FAILED, OPEN = "met", "not met", "not decided"

Row = Mapping[str, Any]  # of table.json


class Figure(NamedTuple):
    """A number and its 95 % interval; without one where none can be told, all None where it was not measured."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def ends(self) -> tuple[float, float] | None:
        """The interval, or the number at both ends; None if it was not measured."""
        if self.value is None:
            return None
        return (self.value, self.value) if self.low is None or self.high is None else (self.low, self.high)

    def text(self, form: str = ".3f") -> str:
        """1.02 [0.98, 1.06]."""
        if self.value is None:
            return "not measured"
        ends = "" if self.low is None or self.high is None else f" [{self.low:{form}}, {self.high:{form}}]"
        return f"{self.value:{form}}{ends}"


# --- verdicts -----------------------------------------------------------------------------------------------


def at_most(figure: Figure, bar: float | None) -> str:
    """Whether all of the interval is at most the bar, or none of it."""
    if figure.ends is None or bar is None:
        return OPEN
    low, high = figure.ends
    return MET if high <= bar else FAILED if low > bar else OPEN


def at_least(figure: Figure, bar: float) -> str:
    """Whether all of the interval is at least the bar, or none of it."""
    if figure.ends is None:
        return OPEN
    low, high = figure.ends
    return MET if low >= bar else FAILED if high < bar else OPEN


def said(verdict: str, claim: str, found: str) -> str:
    """A line of the page."""
    return f"* **{verdict}**: {claim}: {found}."


def row_of(comparison: Mapping[str, Any], solver: str, steps: int) -> Row:
    """The row that draws so."""
    found: Row = next(row for row in comparison["rows"] if (row["solver"], row["steps"]) == (solver, steps))
    return found


def beside(row: Row, name: str) -> Figure:
    """A number of a row beside the first one."""
    values = row["beside_first"]
    return Figure(values[name], values.get(f"{name}_low"), values.get(f"{name}_high"))


def of_table(comparison: Mapping[str, Any]) -> list[str]:
    """LCM-LoRA held against DDIM at 32 steps."""
    first, four, two = comparison["rows"][0], *(row_of(comparison, "lcm", steps) for steps in (4, 2))
    agreement = beside(four, "agreement_ratio")
    speedup = beside(four, "speedup")
    return [
        of_fid(first, four, FID_4),
        of_kid(first, four),
        said(at_least(agreement, AGREEMENT), f"lcm:4 agrees with its prompts at least {AGREEMENT} times as often as"
             " ddim:32", f"{agreement.text()} times"),
        of_fid(first, two, FID_2),
        said(at_least(speedup, SPEEDUP), f"lcm:4 is at least {SPEEDUP} times as fast as ddim:32",
             f"{speedup.text('.1f')} times"),
    ]  # fmt: skip


def of_kid(first: Row, four: Row) -> str:
    """LCM-LoRA's KID held against DDIM's."""
    kid, share, difference = first["kid"], f"{100 * KID_SHARE:g} %", beside(four, "kid_difference")
    bar = KID_SHARE * kid if kid is not None and kid > 0 else None
    allowed = "" if bar is None else f", where {share} is {1000 * bar:.2f}"
    return said(at_most(difference, bar), f"lcm:4's KID is above ddim:32's by at most {share} of that",
                f"by {thousandths(difference)} x 0.001{allowed}")  # fmt: skip


def of_labels(comparison: Mapping[str, Any]) -> list[str]:
    """LCM-LoRA held against DDIM at 32 steps, and without the LoRA."""
    first, four = comparison["rows"][0], row_of(comparison, "lcm", 4)
    bare = next(row for row in comparison["rows"] if row["row"] == BARE)
    found = [f"{thousandths(beside(row, 'kid_difference'))} x 0.001 {how} the LoRA" for how, row in
             (("with", four), ("without", bare))]  # fmt: skip
    return [of_kid(first, four), f"* In four steps LCM's sampler is above ddim:32's KID by {' and by '.join(found)}."]


def of_plain(comparison: Mapping[str, Any]) -> str:
    """How near four steps come without an acceleration, and why."""
    found = [
        f"{row['row']}, at guidance {row['guidance_scale']:g}, has {beside(row, 'fid_ratio').text()}"
        for row in comparison["rows"]
        if row["row"] in PLAIN
    ]
    return (
        f"* Without an acceleration: {' and '.join(found)} of ddim:32's FID. The prompts are"
        " captions that the model learnt from, style and all; of these it is so sure that few plain steps go little"
        " astray."
    )


def of_fid(first: Row, row: Row, bar: float) -> str:
    """A row's mean FID over the first row's."""
    ratio, names = beside(row, "fid_ratio"), [f"{one['solver']}:{one['steps']}" for one in (row, first)]
    found = ratio.text()
    if ratio.value is not None:
        found += f", {fid(row)} to {fid(first)}"
    return said(at_most(ratio, bar), f"{names[0]}'s FID is at most {bar} of {names[1]}'s", found)


def thousandths(figure: Figure) -> str:
    """KID and its differences are small."""
    return Figure(*(None if part is None else 1000 * part for part in figure)).text(".2f")


def of_style(style: str, comparison: Mapping[str, Any]) -> str:
    """A style with lcm in four steps, held against the style alone at the first row's steps; KID stands beside it."""
    first, row = comparison["rows"][0], row_of(comparison, "lcm", 4)
    name, key = next(((name, key) for name, key in DISTANCES if row[key] is not None), DISTANCES[-1])
    ratio, kid = beside(row, f"{key}_ratio"), kid_ratio(first, row)
    found = ratio.text() if ratio.value is None else f"{ratio.text()}, {row[key]:.1f} to {first[key]:.1f}"
    claim = (
        f"{style} at {STYLE_WEIGHT} with lcm in 4 steps is at most {STYLE} as far from the style's drawings, by {name}"
    )
    return said(at_most(ratio, STYLE), f"{claim}, as alone in {first['steps']}", f"{found}; KID ratio {kid.text()}")


DISTANCES = (("FID", "fid"), ("EfficientNet's Fréchet distance", "efficientnet_distance"))


def of_model(comparison: Mapping[str, Any]) -> str:
    """The fine-tuned model with lcm in four steps, held against itself at the first row's."""
    first, row = comparison["rows"][0], row_of(comparison, "lcm", 4)
    ratio = kid_ratio(first, row)
    found = ratio.text()
    if ratio.value is not None:
        found += f", KID x 1000 {1000 * row['kid']:.2f} to {1000 * first['kid']:.2f}"
    claim = f"with lcm in 4 steps its KID is at most {MODEL} of its own in {first['steps']}"
    return said(at_most(ratio, MODEL), claim, found)


def kid_ratio(first: Row, row: Row) -> Figure:
    """KID over the first row's, 1 + d / a, at the corners of the intervals of the difference d and of the first's a.

    It holds at least 90 % (Bonferroni); where a may be 0, anything may be so.
    """
    a, d = first["kid"], beside(row, "kid_difference")
    if a is None or a <= 0 or d.value is None or d.low is None or d.high is None:
        return Figure(None)
    a_low, a_high = first["kid_low"], first["kid_high"]
    if a_low <= 0:
        return Figure(1 + d.value / a, float("-inf"), float("inf"))
    low = 1 + d.low / (a_high if d.low > 0 else a_low)
    return Figure(1 + d.value / a, low, 1 + d.high / (a_low if d.high > 0 else a_high))


def of_grid(style: str, tuning: Mapping[str, Any]) -> str:
    """The best pair of weights, and where the report's stands."""
    report = next(one for one in tuning["candidates"]
                  if (one["style_weight"], one["acceleration_weight"]) == (STYLE_WEIGHT, FULL))  # fmt: skip
    behind = f"{report['behind']:.1f} ± {report['behind_error']:.1f} further from the style than the nearest"
    return (
        f"* {style}: best is `{tuning['best']['typed']}`. The report's {STYLE_WEIGHT} and {FULL} are number"
        f" {report['rank']} of {len(tuning['candidates'])}, {behind}."
    )


# --- the page -----------------------------------------------------------------------------------------------


def page(document: Mapping[str, Any]) -> str:
    """docs/results.md of the pieces in the document; the others are said to be missing."""
    head, *rest = re.split(r"^=== (\w+)\n", template("results"), flags=re.M)
    texts = dict(zip(rest[::2], rest[1::2], strict=True))
    parts = []
    for piece, title in PIECES.items():
        missing = f"Not measured yet: `python -m studies.results --pieces {piece}`."
        body = texts[piece].format(**SAID[piece](document[piece])).strip() if piece in document else missing
        parts.append(f"## {title}\n\n{body}")
    known = known_table(document["table"]["comparison"]) if "table" in document else "The table is not measured yet."
    return head.format(known=known, pieces="\n\n".join(parts))


def known_table(comparison: Mapping[str, Any]) -> str:
    """The table that surveys print: four solvers at the steps they are known for."""
    rows = [(name, row_of(comparison, solver, steps)) for name, solver, steps in KNOWN]
    return text_table(
        COLUMNS,
        [[name, str(row["steps"]), f"{row['time_s']:.3f}", number(row["fid"], ".2f"),
          number(row["lpips_teacher"], ".3f")] for name, row in rows],
    )  # fmt: skip


def number(value: float | None, form: str) -> str:
    """A cell; a dash for what was not measured."""
    return "-" if value is None else format(value, form)


def table_said(piece: Mapping[str, Any]) -> dict[str, str]:
    """What the section of the table says."""
    return {"verdicts": "\n".join(of_table(piece["comparison"])), "shown": shown(piece)}


def controls_said(piece: Mapping[str, Any]) -> dict[str, str]:
    """What the section of the controls says."""
    return {"verdicts": of_plain(piece["comparison"]), "shown": shown(piece)}


def labels_said(piece: Mapping[str, Any]) -> dict[str, str]:
    """What the section of prompts without a style says."""
    return {"verdicts": "\n".join(of_labels(piece["comparison"])), "shown": shown(piece)}


def figure3_said(piece: Mapping[str, Any]) -> dict[str, str]:
    """What the section of Figure 3 says."""
    return {
        "verdicts": "\n".join(of_style(style, one["comparison"]) for style, one in piece.items()),
        "styles": "\n\n".join(f"### {style}\n\n{shown(one)}\n{searched(one)}" for style, one in piece.items()),
    }


def searched(one: Mapping[str, Any]) -> str:
    """The guidances that the style alone was tried at."""
    tried = [f"{tried['guidance_scale']:g}: {1000 * tried['kid']:.2f}" for tried in one["guidance_search"]]
    return f"* guidance, of the style alone in {STYLE_STEPS[0]} steps by its KID x 1000: {', '.join(tried)}"


def grid_said(piece: Mapping[str, Any]) -> dict[str, str]:
    """What the section of the weights says."""
    return {
        "verdicts": "\n".join(of_grid(style, one["tuning"]) for style, one in piece.items()),
        "styles": "\n\n".join(
            f"### {style}: weights\n\n{image(one['picture'])}\n\n{tune.markdown(one['tuning'])}"
            for style, one in piece.items()
        ),
    }


def finetuned_said(piece: Mapping[str, Any]) -> dict[str, str]:
    """What the section of the fine-tuned model says."""
    count = piece["comparison"]["protocol"]["reference"]["images"]
    return {"verdicts": of_model(piece["comparison"]), "count": f"{count:,}", "name": FINETUNED, "shown": shown(piece)}


SAID = {
    "table": table_said,
    "controls": controls_said,
    "labels": labels_said,
    "figure3": figure3_said,
    "grid": grid_said,
    "finetuned": finetuned_said,
}


def shown(piece: Mapping[str, Any]) -> str:
    """A comparison's picture, tables and protocol."""
    return f"{image(piece['picture'])}\n\n{compare.markdown(piece['comparison'])}"


def image(picture: str) -> str:
    """The picture in Markdown."""
    return f"![{Path(picture).stem.removeprefix('results-')}]({picture})"


if __name__ == "__main__":
    write_bytes(DOCS / "results.md", page(read_json(DOCS / "results.json", "figures")).encode())
