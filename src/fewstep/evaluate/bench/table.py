"""The table and the chart of a benchmark."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.errors import number_of
from fewstep.evaluate.bench.arrangements import GUIDE, OWN, TUNED
from fewstep.evaluate.bench.run import ALL_PARTS
from fewstep.evaluate.plots import COLOURS
from fewstep.evaluate.report import text_table

GIB = 2**30
TITLES = (
    "arrangement", "precision", "load (s)", "first picture (s)", "picture (s)", "text", "a step", "decoder", "rest",
    "pictures/s", "best batch", "pictures/s there", "peak GiB", "over the floor", "x guide", "x tuned", "PSNR (dB)",
)  # fmt: skip


def markdown(document: Mapping[str, Any]) -> str:
    """The table, what is missing, and what the numbers are."""
    rows = [row for row in document["rows"] if not row["missing"]]
    missing = [f"* {row['arrangement']}: {row['missing']}" for row in document["rows"] if row["missing"]]
    columns = len(TITLES) - (not any(map(compared, rows)))
    table = text_table(TITLES[:columns], [cells(row)[:columns] for row in rows]) if rows else "nothing was measured"
    return "\n\n".join(
        [table, *(["\n".join(missing)] if missing else []), "\n".join(f"* {x}" for x in facts(document))]
    )


def compared(row: Mapping[str, Any]) -> bool:
    """Whether the row's picture was compared with one in fp32."""
    return row.get("psnr_db") is not None


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table."""
    parts, peak, ratios = row["parts_s"], row["peak_bytes"], row["times_as_fast"]
    return [
        titled(row),
        row["dtype"],
        f"{row['load_s']:.2f}",
        f"{row['first_s']:.3g}",
        f"{row['picture_s']:.3g}",
        *(f"{x:.3g}" for x in (parts["text"], row["step_s"], parts["decoder"], parts["rest"])),
        f"{row['pictures_per_s']:.3g}",
        str(row["best_batch"]),
        f"{row['best_pictures_per_s']:.3g}",
        "" if peak is None else f"{peak / GIB:.2f}",
        *("" if x is None else f"{x:.2f}" for x in (row["over_floor"], ratios[GUIDE], ratios[TUNED])),
        "" if row["psnr_db"] is None else f"{row['psnr_db']:.1f}",
    ]


def titled(row: Mapping[str, Any]) -> str:
    """The arrangement's name, with the engine that auto stands for."""
    name: str = row["arrangement"]
    return f"{name} ({row['engine']})" if name == f"{OWN}auto" else name


def facts(document: Mapping[str, Any]) -> list[str]:
    """What was measured, on what, and how, in words."""
    flops, rates = document["flops"], document["matmul_flops_per_s"]
    measured = ", ".join(f"{rate / 1e12:.3g} in {name}" for name, rate in rates.items()) or "not measured"
    loras = ", ".join(document["lora"]) or "none"
    weights = ", random weights" if document["random"] else ""
    return [
        f"model: {document['model']}{weights}; LoRA: {loras}; {document['width']} x {document['height']} px,"
        f" {number_of(document['steps'], 'step')} of {document['solver']}, guidance {document['guidance_scale']:g}",
        f"decoder of fewstep: {document['decoder']}; of diffusers: full",
        "a picture: from the prompt to a PNG file, in a process that is open; text, a step of the network, decoder and"
        " the rest are its parts, in seconds",
        f"turns: {document['rounds']} of each arrangement, one after another, each in a fresh process; medians, and"
        " ratios within a turn's round",
        "x guide, x tuned: how many times as fast a picture is as diffusers draws it in the same round",
        *(["PSNR: of the first picture to the same in fp32 in torch"] if any(map(compared, document["rows"])) else []),
        f"floor: {flops['picture'] / 1e12:.4g} TFLOP a picture ({flops['text'] / 1e12:.3g} text, {document['steps']} x"
        f" {flops['step'] / 1e12:.3g} network, {flops['decoder'] / 1e12:.3g} decoder), at the rate of matrix products"
        f" in the same precision, in TFLOP/s: {measured}",
        f"machine: {document['machine']}; {' '.join(document['instructions'])}",
        ", ".join(f"{name} {version}" for name, version in document["versions"].items()),
    ]


def chart(path: Path, document: Mapping[str, Any]) -> None:
    """Save a PNG: a bar for each arrangement, in parts, and a mark at its floor."""
    from matplotlib.figure import Figure

    rows: Sequence[Mapping[str, Any]] = [row for row in document["rows"] if not row["missing"]]
    figure = Figure(figsize=(9, 1.4 + 0.6 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    names, begun = [f"{titled(row)}, {row['dtype']}" for row in rows], [0.0] * len(rows)
    for part, colour in zip(ALL_PARTS, COLOURS, strict=False):
        lengths = [row["parts_s"][part] for row in rows]
        axes.barh(names, lengths, left=begun, color=colour, label=part, height=0.6)
        begun = [x + length for x, length in zip(begun, lengths, strict=True)]
    floors = [(row["floor_s"], place) for place, row in enumerate(rows) if row["floor_s"] is not None]
    for number, (seconds, place) in enumerate(floors):
        label = None if number else "floor"
        axes.plot([seconds] * 2, [place - 0.4, place + 0.4], color="black", linewidth=2, label=label)
    axes.invert_yaxis()
    axes.set_xlabel("seconds a picture, from the prompt to the file")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=5, frameon=False)
    figure.savefig(path, format="png", dpi=110)
