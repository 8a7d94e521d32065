"""Comparison of a row with the first one: ratios and differences, whose errors leave out common variation."""

from collections.abc import Callable, Sequence
from typing import Any

from fewstep.evaluate.measure import Measures
from fewstep.evaluate.table import Column, Row, called, cells, number
from fewstep.metrics.estimate import Estimate, mean, ratio


def comparison(row: Row, values: Measures, first: Row, of_first: Measures) -> dict[str, float | None]:
    """A row's comparison with the first one, as in table.json. None: not measured for both, or not defined.

    Both rows have the same prompts, noise and real images. Intervals have 95 % confidence.
    """
    kid = values.kid.less(of_first.kid) if values.kid and of_first.kid else None
    agreement = (
        ratio(values.agreement.hits, of_first.agreement.hits) if values.agreement and of_first.agreement else None
    )
    distance = distance_ratio(values.efficientnet_distance, of_first.efficientnet_distance)
    return {
        **interval("fid_ratio", distance_ratio(values.fid, of_first.fid)),
        "kid_difference": kid.value if kid else None,
        "kid_difference_low": kid.low if kid else None,
        "kid_difference_high": kid.high if kid else None,
        **interval("agreement_ratio", agreement),
        **interval("efficientnet_distance_ratio", distance),
        "speedup": row["speedup"],
    }


def distance_ratio(sets: Sequence[Estimate] | None, of_first: Sequence[Estimate] | None) -> Estimate | None:
    """The mean of a distance over the seed sets, divided by that of the first row."""
    base = mean(of_first) if of_first else None
    return mean(sets).over(base) if sets and base and all(base.without) else None


def interval(name: str, found: Estimate | None) -> dict[str, float | None]:
    """A number and the ends of its interval, by name."""
    low, high = found.interval() if found else (None, None)
    return {name: found.value if found else None, f"{name}_low": low, f"{name}_high": high}


def kid_difference(row: Row) -> str:
    """The difference and its confidence interval, in thousandths."""
    parts = (1000 * row[f"kid_difference{end}"] for end in ("", "_low", "_high"))
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*parts)


def ratio_of(key: str) -> Callable[[Row], str]:
    """A function that writes a ratio and its confidence interval."""
    return lambda row: "{:.3f} [{:.3f}, {:.3f}]".format(*(row[f"{key}{end}"] for end in ("", "_low", "_high")))


CERTAIN = " [95 %]"  # in titles of columns with an interval
COLUMNS = (
    Column("row", "row", called),
    Column(f"FID ratio{CERTAIN}", "fid_ratio", ratio_of("fid_ratio")),
    Column(f"KID difference x 1000{CERTAIN}", "kid_difference", kid_difference),
    Column(f"agreement ratio{CERTAIN}", "agreement_ratio", ratio_of("agreement_ratio")),
    Column(
        f"EfficientNet distance ratio{CERTAIN}", "efficientnet_distance_ratio", ratio_of("efficientnet_distance_ratio")
    ),
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
        lines.append("times as fast: left out, because rows are timed in turns only with timing_rounds")
    ratios = [c.title.removesuffix(CERTAIN) for c in COLUMNS if c.key in measured and c.key.endswith("_ratio")]
    if ratios:
        lines.append(
            f"{', '.join(ratios)}: a row's value divided by that of {rows[0]['row']}; 95 % interval by the jackknife"
            " over groups of images of the same prompts and noise, with fixed real images"
        )
    return lines
