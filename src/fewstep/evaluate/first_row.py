"""Comparison of a row with the first one: ratios and differences, whose errors leave out common variation."""

from collections.abc import Callable, Sequence
from typing import Any

from fewstep.evaluate.measure import Measures
from fewstep.evaluate.table import Column, Row, called, cells, interval, number
from fewstep.metrics.estimate import ratio


def comparison(row: Row, values: Measures, first: Row, of_first: Measures) -> dict[str, float | None]:
    """A row's comparison with the first one, as in table.json. None: not measured for both, or not defined.

    Both rows have the same prompts, noise, real images and teacher's pictures. Intervals have 95 % confidence. There is
    no ratio of Fréchet distances: it changes with the number of images.
    """
    kid = values.kid.less(of_first.kid) if values.kid and of_first.kid else None
    own, other = values.to_teacher, of_first.to_teacher
    agreement = (
        ratio(values.agreement.hits, of_first.agreement.hits, values.groups)
        if values.agreement and of_first.agreement
        else None
    )
    return {
        **interval("kid_t_difference", own.kid.less(other.kid) if own and other and own.kid and other.kid else None),
        **interval("mind_difference", own.mind.less(other.mind) if own and other else None),
        "kid_difference": kid.value if kid else None,
        "kid_difference_low": kid.low if kid else None,
        "kid_difference_high": kid.high if kid else None,
        **interval("agreement_ratio", agreement),
        "speedup": row["speedup"],
    }


def difference(key: str, scale: float = 1) -> Callable[[Row], str]:
    """How a difference and its confidence interval are written."""
    return lambda row: "{:+.2f} [{:+.2f}, {:+.2f}]".format(
        *(scale * row[f"{key}{end}"] for end in ("", "_low", "_high"))
    )


def ratio_of(key: str) -> Callable[[Row], str]:
    """A function that writes a ratio and its confidence interval."""
    return lambda row: "{:.3f} [{:.3f}, {:.3f}]".format(*(row[f"{key}{end}"] for end in ("", "_low", "_high")))


CERTAIN = " [95 %]"  # in titles of columns with an interval
COLUMNS = (
    Column("row", "row", called),
    Column(f"KID-T difference x 1000{CERTAIN}", "kid_t_difference", difference("kid_t_difference", 1000)),
    Column(f"MIND difference{CERTAIN}", "mind_difference", difference("mind_difference")),
    Column(f"KID difference x 1000{CERTAIN}", "kid_difference", difference("kid_difference", 1000)),
    Column(f"agreement ratio{CERTAIN}", "agreement_ratio", ratio_of("agreement_ratio")),
    Column("times as fast", "speedup", number("speedup", ".2f")),
)


def others(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The comparisons of all other rows with the first one, for COLUMNS."""
    return [{"row": row["row"], "lora": row.get("lora"), **row["beside_first"]} for row in rows[1:]]


def table_of(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]] | None:
    """Titles and cells of the comparisons with the first row; None if nothing was measured for both."""
    titles, lines = cells(others(rows), COLUMNS)
    return (titles, lines) if len(titles) > 1 else None


def title(rows: Sequence[Row]) -> str:
    """The table's title."""
    return f"Compared with {called(rows[0])}"


def in_words(rows: Sequence[Row]) -> list[str]:
    """How rows are compared with the first, in words, one line for each number that needs it."""
    measured = {key for row in others(rows) for key, value in row.items() if value is not None}
    lines = []
    if "kid_difference" in measured:
        lines.append(
            f"KID difference: a row's KID minus that of {rows[0]['row']}; 95 % interval of the differences block by"
            " block; both rows have the same real images, prompts and noise"
        )
    if rows[1:] and "speedup" not in measured:
        lines.append("times as fast: left out, because rows are timed in turns only where timing rounds are asked for")
    jackknifed = [
        column.title.removesuffix(CERTAIN).removesuffix(" x 1000")
        for column in COLUMNS
        if column.key in measured and column.key.startswith(("kid_t", "mind", "agreement"))
    ]
    if jackknifed:
        lines.append(
            f"{', '.join(jackknifed)}: compared with {rows[0]['row']}; 95 % interval by the jackknife over groups of"
            " prompts; both rows have the same prompts and noise"
        )
    return lines
