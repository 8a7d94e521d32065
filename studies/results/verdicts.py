"""Verdicts that follow from the figures: a bar that is met, not met, or not decided."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fewstep.evaluate.table import fid
from studies.results.config import BARE, FULL, STYLE_WEIGHT

PLAIN = ("ddim:4@best", BARE)  # rows of four steps without an acceleration
FID_4, FID_2, KID_SHARE, AGREEMENT, SPEEDUP = 1.05, 1.3, 0.1, 0.95, 8  # the bars of the table
STYLE_BAR, MODEL_BAR = 1.15, 1.15  # those of a style and of a fine-tuned model
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


def verdict_line(verdict: str, claim: str, found: str) -> str:
    """A line of the page."""
    return f"* **{verdict}**: {claim}: {found}."


def row_of(comparison: Mapping[str, Any], solver: str, steps: int) -> Row:
    """The row that draws so."""
    found: Row = next(row for row in comparison["rows"] if (row["solver"], row["steps"]) == (solver, steps))
    return found


def relative(row: Row, name: str) -> Figure:
    """A number of a row beside the first one."""
    values = row["beside_first"]
    return Figure(values[name], values.get(f"{name}_low"), values.get(f"{name}_high"))


def of_table(comparison: Mapping[str, Any]) -> list[str]:
    """LCM-LoRA held against DDIM at 32 steps."""
    first, four, two = comparison["rows"][0], *(row_of(comparison, "lcm", steps) for steps in (4, 2))
    agreement = relative(four, "agreement_ratio")
    speedup = relative(four, "speedup")
    return [
        of_fid(first, four, FID_4),
        of_kid(first, four),
        verdict_line(at_least(agreement, AGREEMENT), f"lcm:4 agrees with its prompts at least {AGREEMENT} times as"
                     " often as ddim:32", f"{agreement.text()} times"),
        of_fid(first, two, FID_2),
        verdict_line(at_least(speedup, SPEEDUP), f"lcm:4 is at least {SPEEDUP} times as fast as ddim:32",
             f"{speedup.text('.1f')} times"),
    ]  # fmt: skip


def of_kid(first: Row, four: Row) -> str:
    """LCM-LoRA's KID held against DDIM's."""
    kid, share, difference = first["kid"], f"{100 * KID_SHARE:g} %", relative(four, "kid_difference")
    bar = KID_SHARE * kid if kid is not None and kid > 0 else None
    allowed = "" if bar is None else f", where {share} is {1000 * bar:.2f}"
    return verdict_line(at_most(difference, bar), f"lcm:4's KID is above ddim:32's by at most {share} of that",
                f"by {thousandths(difference)} x 0.001{allowed}")  # fmt: skip


def of_labels(comparison: Mapping[str, Any]) -> list[str]:
    """LCM-LoRA held against DDIM at 32 steps, and without the LoRA."""
    first, four = comparison["rows"][0], row_of(comparison, "lcm", 4)
    bare = next(row for row in comparison["rows"] if row["row"] == BARE)
    found = [f"{thousandths(relative(row, 'kid_difference'))} x 0.001 {how} the LoRA" for how, row in
             (("with", four), ("without", bare))]  # fmt: skip
    return [of_kid(first, four), f"* In four steps LCM's sampler is above ddim:32's KID by {' and by '.join(found)}."]


def of_plain(comparison: Mapping[str, Any]) -> str:
    """How near four steps come without an acceleration, and why."""
    found = [
        f"{row['row']}, at guidance {row['guidance_scale']:g}, has {relative(row, 'fid_ratio').text()}"
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
    ratio, names = relative(row, "fid_ratio"), [f"{one['solver']}:{one['steps']}" for one in (row, first)]
    found = ratio.text()
    if ratio.value is not None:
        found += f", {fid(row)} to {fid(first)}"
    return verdict_line(at_most(ratio, bar), f"{names[0]}'s FID is at most {bar} of {names[1]}'s", found)


def thousandths(figure: Figure) -> str:
    """KID and its differences are small."""
    return Figure(*(None if part is None else 1000 * part for part in figure)).text(".2f")


def of_style(style: str, comparison: Mapping[str, Any]) -> str:
    """A style with lcm in four steps, held against the style alone at the first row's steps; KID stands beside it."""
    first, row = comparison["rows"][0], row_of(comparison, "lcm", 4)
    name, key = next(((name, key) for name, key in DISTANCES if row[key] is not None), DISTANCES[-1])
    ratio, kid = relative(row, f"{key}_ratio"), kid_ratio(first, row)
    found = ratio.text() if ratio.value is None else f"{ratio.text()}, {row[key]:.1f} to {first[key]:.1f}"
    claim = (
        f"{style} at {STYLE_WEIGHT} with lcm in 4 steps is at most {STYLE_BAR} as far from the style's drawings, by"
        f" {name}, as alone in {first['steps']}"
    )
    return verdict_line(at_most(ratio, STYLE_BAR), claim, f"{found}; KID ratio {kid.text()}")


DISTANCES = (("FID", "fid"), ("EfficientNet's Fréchet distance", "efficientnet_distance"))


def of_model(comparison: Mapping[str, Any]) -> str:
    """The fine-tuned model with lcm in four steps, held against itself at the first row's."""
    first, row = comparison["rows"][0], row_of(comparison, "lcm", 4)
    ratio = kid_ratio(first, row)
    found = ratio.text()
    if ratio.value is not None:
        found += f", KID x 1000 {1000 * row['kid']:.2f} to {1000 * first['kid']:.2f}"
    claim = f"with lcm in 4 steps its KID is at most {MODEL_BAR} of its own in {first['steps']}"
    return verdict_line(at_most(ratio, MODEL_BAR), claim, found)


def kid_ratio(first: Row, row: Row) -> Figure:
    """KID over the first row's, 1 + d / a, at the corners of the intervals of the difference d and of the first's a.

    It holds at least 90 % (Bonferroni); where a may be 0, anything may be so.
    """
    a, d = first["kid"], relative(row, "kid_difference")
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
