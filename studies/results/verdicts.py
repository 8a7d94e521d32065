"""Verdicts that follow from the figures: a bar that is met, not met, or not decided, by the whole 95 % interval."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fewstep.evaluate.rows import parse_row
from fewstep.metrics.estimate import Estimate
from fewstep.metrics.kid import mean_interval

SOLVERS = {"ddim": "DDIM", "dpm-solver": "DPM-Solver", "dpm-solver++": "DPM-Solver++"}
AIM, AGREEMENT_4, AGREEMENT_2, SHARPNESS = 0.25, 0.95, 0.9, 0.9  # the bars
MET, FAILED, OPEN = "met", "not met", "not decided"
Row = Mapping[str, Any]  # of table.json
Rows = Sequence[Row]


class Figure(NamedTuple):
    """A number and its 95 % interval; all None where it was not measured."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def text(self, form: str = ".2f", scale: float = 1) -> str:
        """1.02 [0.98, 1.06]; a dash where it was not measured."""
        if self.value is None or self.low is None or self.high is None:
            return "-"
        value, low, high = (format(scale * part, form) for part in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"


def at_most(figure: Figure, bar: float) -> str:
    """Whether all of the interval is at most the bar, or none of it."""
    if figure.low is None or figure.high is None:
        return OPEN
    return MET if figure.high <= bar else FAILED if figure.low > bar else OPEN


def at_least(figure: Figure, bar: float) -> str:
    """Whether all of the interval is at least the bar, or none of it."""
    if figure.low is None or figure.high is None:
        return OPEN
    return MET if figure.low >= bar else FAILED if figure.high < bar else OPEN


def line(verdict: str, claim: str, found: str) -> str:
    """A line of the page."""
    return f"* **{verdict}**: {claim}: {found}."


# --- rows and their figures ---------------------------------------------------------------------------------


def fast(rows: Rows, steps: int) -> Row:
    """The row of the LoRA in so many steps."""
    return next(row for row in rows if row["steps"] == steps and has_lora(row))


def has_lora(row: Row) -> bool:
    """Whether a LoRA adds to a row; at weight 0 none does."""
    return any(not lora.endswith(":0") for lora in parse_row(row["row"]).loras)


def best_plain(rows: Rows, nfe: int) -> Row:
    """The row without the LoRA of so many network rows an image that comes nearest to the teacher."""
    return min((row for row in rows if row["nfe"] == nfe and not has_lora(row)), key=lambda row: float(row["kid_t"]))


def called(row: Row) -> str:
    """What a person calls a row's sampler."""
    spec = parse_row(row["row"])
    if has_lora(row):
        return "LCM-LoRA"
    return SOLVERS.get(spec.solver, f"{spec.solver.upper()}'s sampler without the LoRA")


def way_of(row: Row) -> str:
    """How a row draws, in words."""
    guidance = "without guidance" if row["guidance_scale"] == 1 else f"at guidance {row['guidance_scale']:g}"
    return f"{called(row)} in {row['steps']} steps {guidance}"


def figure(row: Row, key: str) -> Figure:
    """A number of a row with its interval."""
    return Figure(row[key], row[f"{key}_low"], row[f"{key}_high"])


def kid_t(row: Row) -> Estimate:
    """KID-T with what it is without each group of prompts."""
    return Estimate(row["kid_t"], tuple(row["kid_t_without"]))


def beyond(row: Row, other: Row, share: float = 1) -> Figure:
    """A row's KID-T less a share of another's, paired."""
    part = Estimate(share * other["kid_t"], tuple(share * value for value in other["kid_t_without"]))
    difference = kid_t(row).less(part)
    return Figure(difference.value, *difference.interval())


def kid_beyond(row: Row, other: Row) -> Figure:
    """A row's KID to the drawings less another's, block by block."""
    blocks = zip(row["kid_blocks"], other["kid_blocks"], strict=True)
    return Figure(*mean_interval([own - others for own, others in blocks]))


# --- the bars -----------------------------------------------------------------------------------------------


def of_survey(rows: Rows) -> list[str]:
    """The bar on the rows that have the most pictures."""
    return [agreement_line(rows, 4, AGREEMENT_4)]


def of_names(rows: Rows) -> list[str]:
    """The bars on names of things."""
    return [*of_teacher(rows), agreement_line(rows, 2, AGREEMENT_2)]


def agreement_line(rows: Rows, steps: int, bar: float) -> str:
    """How often the LoRA's pictures agree with their prompts, beside those of the first row."""
    row = fast(rows, steps)
    found = Figure(*(row["beside_first"][f"agreement_ratio{end}"] for end in ("", "_low", "_high")))
    claim = f"{way_of(row)} agrees with its prompts at least {bar} times as often as {way_of(rows[0])}"
    return line(at_least(found, bar), claim, found.text(".3f"))


def of_typed(rows: Rows) -> list[str]:
    """The bars on prompts as people type them."""
    sharp = figure(fast(rows, 4), "sharpness")
    claim = f"LCM-LoRA in 4 steps is at least {SHARPNESS} times as sharp as the teacher"
    return [*of_teacher(rows), line(at_least(sharp, SHARPNESS), claim, sharp.text())]


def of_teacher(rows: Rows) -> list[str]:
    """How near the LoRA in four steps comes to the teacher, by KID-T x 1000."""
    four, lines = fast(rows, 4), []
    for nfe in (4, 8):
        other = best_plain(rows, nfe)
        difference = beyond(four, other)
        claim = f"LCM-LoRA in 4 steps is nearer to the teacher than all rows of {nfe} NFE without it"
        found = f"KID-T x 1000 less that of the nearest, {way_of(other)}, is {difference.text(scale=1000)}"
        lines.append(line(at_most(difference, 0), claim, found))
    other = best_plain(rows, 4)
    quarter = beyond(four, other, AIM).text(scale=1000)
    lines.append(
        line(at_most(beyond(four, other, AIM), 0), f"its KID-T is at most a quarter of that of {way_of(other)}",
             f"KID-T x 1000 less a quarter of that is {quarter}")
    )  # fmt: skip
    sixteen = next(row for row in rows if row["nfe"] == 16)
    difference = beyond(four, sixteen)
    claim = f"LCM-LoRA in 4 steps is at least as near to the teacher as {way_of(sixteen)}, of 16 NFE"
    lines.append(
        line(at_most(difference, 0), claim, f"KID-T x 1000 less that of the other is {difference.text(scale=1000)}")
    )
    return lines


def of_plugin(name: str, rows: Rows) -> list[str]:
    """A style or a fine-tuned model with the LoRA, beside itself alone in many steps, and with the LoRA at 0."""
    alone, with_lora, zero = rows
    differences = [kid_beyond(with_lora, other) for other in (alone, zero)]
    claims = [f"{name} with lcm in 4 steps is as near to its drawings as alone in {alone['steps']}, or nearer",
              f"{name} with lcm in 4 steps is nearer to its drawings than with lcm at 0"]  # fmt: skip
    return [
        line(at_most(difference, 0), claim, f"KID x 1000 less that of the other is {difference.text(scale=1000)}")
        for difference, claim in zip(differences, claims, strict=True)
    ]
