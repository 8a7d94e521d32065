"""A row beside the first one: ratios and differences, with what sways both rows alike left out of their errors."""

from collections.abc import Sequence
from typing import Any

from fewstep.evaluate.estimate import ratio
from fewstep.evaluate.measure import Measures
from fewstep.evaluate.table import Column, Row, number


def beside(row: Row, values: Measures, first: Row, of_first: Measures) -> dict[str, float | None]:
    """A row beside the first one, as it stands in table.json; None is not measured of both, or cannot be told.

    Both are of the same prompts and noise, and beside the same real images. Intervals have 95 % confidence.
    """
    kid = values.kid.less(of_first.kid) if values.kid and of_first.kid else None
    agreement = (
        ratio(values.agreement.hits, of_first.agreement.hits) if values.agreement and of_first.agreement else None
    )
    low, high = agreement.interval() if agreement else (None, None)
    return {
        "fid_ratio": over(row["fid"], first["fid"]),
        "kid_difference": kid.value if kid else None,
        "kid_difference_low": kid.low if kid else None,
        "kid_difference_high": kid.high if kid else None,
        "agreement_ratio": agreement.value if agreement else None,
        "agreement_ratio_low": low,
        "agreement_ratio_high": high,
        "efficientnet_distance_ratio": over(row["efficientnet_distance"], first["efficientnet_distance"]),
        "speedup": over(first["time_s"], row["time_s"]),
    }


def over(value: float | None, other: float | None) -> float | None:
    """The ratio of two numbers; None if one was not measured or there is nothing to divide by."""
    return None if value is None or not other else value / other


def kid_difference(row: Row) -> str:
    """The difference and its confidence interval, in thousandths."""
    parts = (1000 * row[f"kid_difference{end}"] for end in ("", "_low", "_high"))
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*parts)


def agreement_ratio(row: Row) -> str:
    """The ratio and its confidence interval."""
    return "{:.3f} [{:.3f}, {:.3f}]".format(*(row[f"agreement_ratio{end}"] for end in ("", "_low", "_high")))


COLUMNS = (
    Column("row", "row", lambda row: str(row["row"])),
    Column("FID ratio", "fid_ratio", number("fid_ratio")),
    Column("KID difference x 1000 [95 %]", "kid_difference", kid_difference),
    Column("agreement ratio [95 %]", "agreement_ratio", agreement_ratio),
    Column("EfficientNet distance ratio", "efficientnet_distance_ratio", number("efficientnet_distance_ratio")),
    Column("times as fast", "speedup", number("speedup", ".2f")),
)


def others(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """All rows but the first, beside it, as COLUMNS read them."""
    return [{"row": row["row"], **row["beside_first"]} for row in rows[1:]]


def title(rows: Sequence[Row]) -> str:
    """What stands over the table."""
    return f"Beside {rows[0]['row']}"


def told(rows: Sequence[Row]) -> list[str]:
    """In words how rows are put beside the first, a line for each number that needs it."""
    shown = {key for row in others(rows) for key, value in row.items() if value is not None}
    lines = []
    if "kid_difference" in shown:
        lines.append(
            f"KID difference: a row's less that of {rows[0]['row']}; 95 % interval of the differences block by block,"
            " in both rows the same real images and images of the same prompts and noise"
        )
    if "agreement_ratio" in shown:
        lines.append(
            f"agreement ratio: a row's over that of {rows[0]['row']}; 95 % interval by the jackknife over groups of"
            " images of the same prompts and noise"
        )
    return lines
