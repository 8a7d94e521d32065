"""The table of a comparison: its rows as data and as Markdown, and groups of rows that share a value."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fewstep.evaluate.measure import Measures
from fewstep.evaluate.row_pictures import PARTS, RowPictures
from fewstep.evaluate.rows import RowSpec
from fewstep.metrics.estimate import Estimate, mean

Row = Mapping[str, Any]  # a row of table.json, made by `entry`


def entry(
    spec: RowSpec, pictures: RowPictures, values: Measures, search: list[dict[str, float]] | None
) -> dict[str, Any]:
    """A row, as in table.json. None: not measured. Times are seconds per image.

    search: how its guidance was found; None if it was given.
    """
    split, kid, agreement = pictures.split_s, values.kid, values.agreement
    return {
        "row": spec.text,
        "solver": pictures.plan.solver_name,
        "eta": pictures.plan.eta,
        "gamma": pictures.plan.gamma,
        "steps": pictures.plan.steps,
        "timesteps": list(pictures.plan.timesteps),
        "guidance_scale": pictures.plan.guidance_scale,
        "guidance_search": search,
        "lora": list(pictures.loras),
        "nfe": pictures.nfe,
        "time_s": sum(split.values()),
        "time_split_s": split,
        "speedup": pictures.speedup,
        "fid": values.fid and mean(values.fid).value,
        "fid_spread": spread(values.fid),
        "kid": kid.value if kid else None,
        "kid_low": kid.low if kid else None,
        "kid_high": kid.high if kid else None,
        "lpips_teacher": values.lpips_teacher,
        "agreement": agreement.score if agreement else None,
        "diversity": values.diversity,
        "efficientnet_score": values.efficientnet_score,
        "clip_score": values.clip_score,
        "efficientnet_distance": values.efficientnet_distance and mean(values.efficientnet_distance).value,
    }


def spread(sets: Sequence[Estimate] | None) -> float | None:
    """The largest minus the smallest of several seed sets' numbers."""
    values = [one.value for one in sets or ()]
    return max(values) - min(values) if len(values) > 1 else None


def short(text: str) -> str:
    """A row as typed, but with only the last folder and the name of its LoRA files."""
    return re.sub(r"\+[^+]*[/\\](?=[^+/\\]+[/\\][^+/\\]+(\+|$))", "+", text).replace(".safetensors:", ":")


def called(row: Row) -> str:
    """A row as typed, with LoRAs that were added without typing: the acceleration that ships with the model."""
    untyped = [] if "+" in row["row"] else row.get("lora") or []
    return " ".join([str(row["row"]), *(f"(with {lora['file']}:{lora['weight']:g})" for lora in untyped)])


class Column(NamedTuple):
    """A column of the printed table. It is left out if no row has its key."""

    title: str
    key: str
    text: Callable[[Row], str]


def number(key: str, form: str = ".3f", scale: float = 1) -> Callable[[Row], str]:
    """A function that writes the number with this key."""
    return lambda row: format(scale * row[key], form)


def fid(row: Row) -> str:
    """FID and, for several seed sets, its spread."""
    return f"{row['fid']:.2f}" + ("" if row["fid_spread"] is None else f" (spread {row['fid_spread']:.2f})")


def kid(row: Row) -> str:
    """KID and its confidence interval, in thousandths."""
    return f"{1000 * row['kid']:.2f} [{1000 * row['kid_low']:.2f}, {1000 * row['kid_high']:.2f}]"


def split(row: Row) -> str:
    """Milliseconds per image of each part."""
    return " + ".join(f"{1000 * row['time_split_s'][part]:.1f}" for part in PARTS)


COLUMNS = (
    Column("row", "row", called),
    Column("steps", "steps", number("steps", "d")),
    Column("NFE", "nfe", number("nfe", "g")),
    Column("guidance", "guidance_scale", number("guidance_scale", "g")),
    Column("ms/image", "time_s", number("time_s", ".1f", 1000)),
    Column(" + ".join(PARTS), "time_split_s", split),
    Column("FID", "fid", fid),
    Column("KID x 1000 [95 %]", "kid", kid),
    Column("EfficientNet distance", "efficientnet_distance", number("efficientnet_distance", ".2f")),
    Column("LPIPS to teacher", "lpips_teacher", number("lpips_teacher")),
    Column("agreement %", "agreement", number("agreement", ".1f", 100)),
    Column("CLIP score", "clip_score", number("clip_score", ".2f")),
    Column("diversity", "diversity", number("diversity")),
    Column("EfficientNet score", "efficientnet_score", number("efficientnet_score", ".2f")),
)


def cells(rows: Sequence[Row], columns: Sequence[Column] = COLUMNS) -> tuple[list[str], list[list[str]]]:
    """The titles of the measured columns, and the rows as text. Rows of an earlier version may lack a key."""
    filled = [column for column in columns if any(row.get(column.key) is not None for row in rows)]
    lines = [["-" if row.get(column.key) is None else column.text(row) for column in filled] for row in rows]
    return [column.title for column in filled], lines


def shared(rows: Sequence[Row], key: str, within: float = 1.0) -> list[list[Row]]:
    """Groups of several rows that have the same value, or values at most `within` times the smallest of them."""
    ordered = sorted(rows, key=lambda row: float(row[key]))
    groups: list[list[Row]] = []
    for first, row in enumerate(ordered):
        group = [other for other in ordered[first:] if other[key] <= row[key] * within]
        if len(group) > 1 and not (groups and groups[-1][-1] is group[-1]):  # else part of the group before
            groups.append(group)
    return groups
