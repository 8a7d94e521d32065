"""The table of a comparison: its rows as data and as Markdown, and groups of rows that share a value."""

import re
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from fewstep.evaluate.measure import Measures
from fewstep.evaluate.row_pictures import PARTS, RowPictures
from fewstep.evaluate.rows import RowSpec
from fewstep.metrics.estimate import Estimate

Row = Mapping[str, Any]  # a row of table.json, made by `entry`


def entry(
    spec: RowSpec, pictures: RowPictures, values: Measures, search: list[dict[str, float]] | None
) -> dict[str, Any]:
    """A row, as in table.json. None: not measured. Times are seconds per image.

    search: how its guidance was found; None if it was given.
    """
    split, kid, agreement, near = pictures.split_s, values.kid, values.agreement, values.to_teacher
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
        "fid": values.fid and fmean(values.fid),
        "fid_spread": spread(values.fid),
        "kid": kid.value if kid else None,
        "kid_low": kid.low if kid else None,
        "kid_high": kid.high if kid else None,
        "kid_blocks": list(kid.values) if kid else None,
        "lpips_teacher": values.lpips_teacher,
        "agreement": agreement.score if agreement else None,
        "diversity": values.diversity,
        "efficientnet_score": values.efficientnet_score,
        "clip_score": values.clip_score,
        "efficientnet_distance": values.efficientnet_distance and fmean(values.efficientnet_distance),
        **interval("kid_t", near and near.kid),
        "kid_t_without": list(near.kid.without) if near and near.kid else None,
        "fid_t": near and near.fid,
        "patch_fid_t": near and near.patch_fid,
        "mind": near and near.mind.value,
        **interval("sharpness", near and near.sharpness),
    }


def interval(name: str, found: Estimate | None) -> dict[str, float | None]:
    """A number and the ends of its interval, by name."""
    low, high = found.interval() if found else (None, None)
    return {name: found.value if found else None, f"{name}_low": low, f"{name}_high": high}


def spread(sets: Sequence[float] | None) -> float | None:
    """The largest minus the smallest of several seed sets' numbers."""
    return max(sets) - min(sets) if sets and len(sets) > 1 else None


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


def with_interval(key: str, form: str = ".2f", scale: float = 1) -> Callable[[Row], str]:
    """How a number and its confidence interval are written."""
    return lambda row: "{} [{}, {}]".format(
        *(format(scale * row[f"{key}{end}"], form) for end in ("", "_low", "_high"))
    )


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
    Column("KID-T x 1000 [95 %]", "kid_t", with_interval("kid_t", scale=1000)),
    Column("FID-T", "fid_t", number("fid_t", ".2f")),
    Column("Patch-FID-T", "patch_fid_t", number("patch_fid_t", ".2f")),
    Column("MIND", "mind", number("mind", ".2f")),
    Column("sharpness [95 %]", "sharpness", with_interval("sharpness")),
    Column("FID", "fid", fid),
    Column("KID x 1000 [95 %]", "kid", with_interval("kid", scale=1000)),
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
