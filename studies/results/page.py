"""The words of docs/results.md; `python -m studies.results.page` writes it anew from the figures that are there."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.evaluate import compare, tune
from fewstep.evaluate.report import text_table
from fewstep.io import read_json, write_bytes
from studies.pages import DOCS, template
from studies.results.config import FINETUNED, PIECES, STYLE_STEPS
from studies.results.verdicts import of_grid, of_labels, of_model, of_plain, of_style, of_table, row_of

KNOWN = (("DDIM", "ddim", 32), ("DPM-Solver", "dpm-solver", 16), ("DPM-Solver++", "dpm-solver++", 8),
         ("LCM-LoRA", "lcm", 4))  # fmt: skip
COLUMNS = ("solver", "steps", "time (s)", "FID", "LPIPS")


def page(document: Mapping[str, Any]) -> str:
    """docs/results.md of the pieces in the document; the others are said to be missing."""
    head, *rest = re.split(r"^=== (\w+)\n", template("results"), flags=re.M)
    texts = dict(zip(rest[::2], rest[1::2], strict=True))
    parts = []
    for piece, title in PIECES.items():
        missing = f"Not measured yet: `python -m studies.results --pieces {piece}`."
        body = texts[piece].format(**TEXTS[piece](document[piece])).strip() if piece in document else missing
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


def table_text(piece: Mapping[str, Any]) -> dict[str, str]:
    """What the section of the table says."""
    return {"verdicts": "\n".join(of_table(piece["comparison"])), "shown": comparison_text(piece)}


def controls_text(piece: Mapping[str, Any]) -> dict[str, str]:
    """What the section of the controls says."""
    return {"verdicts": of_plain(piece["comparison"]), "shown": comparison_text(piece)}


def labels_text(piece: Mapping[str, Any]) -> dict[str, str]:
    """What the section of prompts without a style says."""
    return {"verdicts": "\n".join(of_labels(piece["comparison"])), "shown": comparison_text(piece)}


def figure3_text(piece: Mapping[str, Any]) -> dict[str, str]:
    """What the section of Figure 3 says."""
    return {
        "verdicts": "\n".join(of_style(style, one["comparison"]) for style, one in piece.items()),
        "styles": "\n\n".join(
            f"### {style}\n\n{comparison_text(one)}\n{search_text(one)}" for style, one in piece.items()
        ),
    }


def search_text(one: Mapping[str, Any]) -> str:
    """The guidances that the style alone was tried at."""
    tried = [f"{tried['guidance_scale']:g}: {1000 * tried['kid']:.2f}" for tried in one["guidance_search"]]
    return f"* guidance, of the style alone in {STYLE_STEPS[0]} steps by its KID x 1000: {', '.join(tried)}"


def grid_text(piece: Mapping[str, Any]) -> dict[str, str]:
    """What the section of the weights says."""
    return {
        "verdicts": "\n".join(of_grid(style, one["tuning"]) for style, one in piece.items()),
        "styles": "\n\n".join(
            f"### {style}: weights\n\n{image(one['picture'])}\n\n{tune.markdown(one['tuning'])}"
            for style, one in piece.items()
        ),
    }


def finetuned_text(piece: Mapping[str, Any]) -> dict[str, str]:
    """What the section of the fine-tuned model says."""
    count = piece["comparison"]["protocol"]["reference"]["images"]
    return {
        "verdicts": of_model(piece["comparison"]),
        "count": f"{count:,}",
        "name": FINETUNED,
        "shown": comparison_text(piece),
    }


TEXTS = {
    "table": table_text,
    "controls": controls_text,
    "labels": labels_text,
    "figure3": figure3_text,
    "grid": grid_text,
    "finetuned": finetuned_text,
}


def comparison_text(piece: Mapping[str, Any]) -> str:
    """A comparison's picture, tables and protocol."""
    return f"{image(piece['picture'])}\n\n{compare.markdown(piece['comparison'])}"


def image(picture: str) -> str:
    """The picture in Markdown."""
    return f"![{Path(picture).stem.removeprefix('results-')}]({picture})"


if __name__ == "__main__":
    write_bytes(DOCS / "results.md", page(read_json(DOCS / "results.json", "figures")).encode())
