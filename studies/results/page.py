"""The words of docs/results.md and of the README's table; `python -m studies.results.page` writes them anew.

They are written from the figures that are there; nothing is measured.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.evaluate.report import text_table
from fewstep.io import read_json, write_bytes
from studies.pages import DOCS, template
from studies.results.config import PIECES
from studies.results.verdicts import (
    Row,
    Rows,
    best_plain,
    called,
    fast,
    figure,
    has_lora,
    of_names,
    of_plugin,
    of_survey,
    of_typed,
    way_of,
)

README = DOCS.parent / "README.md"
TABLE = re.compile(r"(<!-- the table: python -m studies.results.page -->\n).*?(<!-- its end -->)", re.S)
PICTURE = "![DDIM in 32 steps, with the LCM-LoRA in 4, without it in 4](docs/pictures/results-readme.jpg)"
WORDS = """LPIPS is the distance to the model's own picture from the same noise in 100 steps, KID-T that to its own
pictures from other noise, KID that to real drawings. See [results](docs/results.md), and
`fewstep compare --preset evidence` for the same of a model of your own."""
SHEET = """![typed prompts](pictures/results-typed.jpg)

Above: prompts as people type them, by DDIM in 32 steps, with the LCM-LoRA in 4, by the same sampler in 4 without it."""
Document = Mapping[str, Any]


def page(document: Document) -> str:
    """docs/results.md of the pieces in the document; the others are said to be missing."""
    parts = {name: f"Not measured yet: `python -m studies.results --pieces {name}`." for name in PIECES}
    parts |= {name: TEXTS[name](document[name]) for name in PIECES if name in document}
    sheet = SHEET if "typed" in document else ""
    bars = "\n".join(of_survey(document["survey"]["survey"]["rows"])) if "survey" in document else ""
    words = {"learnt": learnt(document), "sheet": sheet, "bars": bars, "protocol": protocol(document)}
    text = template("results").format(**words, **parts)
    return re.sub("\n{3,}", "\n\n", text)


def learnt(document: Document) -> str:
    """What the page opens with, once all of what it tells is measured."""
    if not {"survey", "typed"} <= document.keys():
        return "The figures that this page opens with are not measured yet."
    return template("results-learnt").strip().format(**numbers(document))


def numbers(document: Document) -> dict[str, str]:
    """The figures in the opening sentences."""
    survey, typed = document["survey"]["survey"]["rows"], document["typed"]["typed"]["rows"]
    ddim, four, best = survey[0], survey[-1], best_plain(typed, 4)
    return {
        "times": f"{ddim['time_s'] / four['time_s']:.0f}",
        "kid_t": f"{1000 * four['kid_t']:.1f}",
        "kid_t_ddim": f"{1000 * ddim['kid_t']:.1f}",
        "agreement": f"{100 * four['agreement']:.1f}",
        "agreement_ddim": f"{100 * ddim['agreement']:.1f}",
        "kid_t_typed": f"{1000 * fast(typed, 4)['kid_t']:.1f}",
        "kid_t_best": f"{1000 * best['kid_t']:.1f}",
        "best": way_of(best),
        "sharpness": f"{fast(typed, 4)['sharpness']:.2f}",
        "sharpness_best": f"{best['sharpness']:.2f}",
    }


# --- tables -------------------------------------------------------------------------------------------------


def cell(value: float | None, form: str, scale: float = 1) -> str:
    """A number; a dash for what was not measured."""
    return "-" if value is None else format(scale * value, form)


Column = tuple[str, Callable[[Row], str]]
SAMPLER: Column = ("sampler", called)
STEPS: Column = ("steps", lambda row: str(row["steps"]))
NFE: Column = ("NFE", lambda row: f"{row['nfe']:g}")
GUIDANCE: Column = ("guidance", lambda row: f"{row['guidance_scale']:g}")
TIME: Column = ("time (s)", lambda row: cell(row["time_s"], ".3f"))
SPLIT: Column = ("text + network + decoder (ms)", lambda row: " + ".join(
    f"{1000 * seconds:.0f}" for seconds in row["time_split_s"].values()))  # fmt: skip
FID: Column = ("FID", lambda row: cell(row["fid"], ".2f"))
LPIPS: Column = ("LPIPS", lambda row: cell(row["lpips_teacher"], ".3f"))
KID_T: Column = ("KID-T x 1000 [95 %]", lambda row: figure(row, "kid_t").text(".1f", 1000))
FID_T: Column = ("FID-T", lambda row: cell(row["fid_t"], ".2f"))
PATCH: Column = ("Patch-FID-T", lambda row: cell(row["patch_fid_t"], ".2f"))
MIND: Column = ("MIND", lambda row: cell(row["mind"], ".1f"))
SHARPNESS: Column = ("sharpness [95 %]", lambda row: figure(row, "sharpness").text())
AGREEMENT: Column = ("agreement %", lambda row: cell(row["agreement"], ".1f", 100))
KID: Column = ("KID x 1000 [95 %]", lambda row: figure(row, "kid").text(".1f", 1000))
DIVERSITY: Column = ("diversity", lambda row: cell(row["diversity"], ".3f"))

HEADLINE = (SAMPLER, STEPS, TIME, FID, LPIPS, KID_T, AGREEMENT, KID)
SURVEY = (*HEADLINE, FID_T, PATCH, SPLIT)
COST = (SAMPLER, STEPS, GUIDANCE, NFE, KID_T, MIND, SHARPNESS, AGREEMENT, KID, LPIPS, DIVERSITY)
TYPED = (SAMPLER, STEPS, GUIDANCE, NFE, KID_T, MIND, SHARPNESS)
BEST = (SAMPLER, STEPS, GUIDANCE, NFE, KID, AGREEMENT)


def table(columns: Sequence[Column], rows: Rows) -> str:
    """The rows as Markdown, without columns of which nothing was measured."""
    filled = [(title, text) for title, text in columns if any(text(row) != "-" for row in rows)]
    return text_table([title for title, _ in filled], [[text(row) for _, text in filled] for row in rows])


def survey_text(piece: Document) -> str:
    """The table that surveys print."""
    return table(SURVEY, piece["survey"]["rows"])


def names_text(piece: Document) -> str:
    """Rows of equal cost, and their bars."""
    rows = piece["names"]["rows"]
    return "\n\n".join([table(COST, by_cost(rows)), "\n".join(of_names(rows))])


def typed_text(piece: Document) -> str:
    """The same on typed prompts."""
    rows = piece["typed"]["rows"]
    return "\n\n".join([table(TYPED, by_cost(rows)), "\n".join(of_typed(rows))])


def by_cost(rows: Rows) -> list[Row]:
    """The costliest first; of equals the LoRA last."""
    return sorted(rows, key=lambda row: (-row["nfe"], has_lora(row)))


def best_text(piece: Document) -> str:
    """Of each sampler the row with the smallest KID to the drawings."""
    rows = piece["best"]["rows"]
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((called(row), row["steps"]), []).append(row)
    return table(BEST, [min(group, key=lambda row: float(row["kid"])) for group in groups.values()])


def plugin_text(piece: Document) -> str:
    """A fine-tuned model and styles, each in three rows, and their bars."""
    lines, verdicts = [], []
    for name, one in piece.items():
        ways = ("alone", "with lcm", "with lcm at 0")
        for way, row in zip(ways, one["rows"], strict=True):
            lines.append([name, way, *(text(row) for _, text in (STEPS, GUIDANCE, NFE, KID, AGREEMENT))])
        verdicts += of_plugin(name, one["rows"])
    titles = ["what", "drawn", *(title for title, _ in (STEPS, GUIDANCE, NFE, KID, AGREEMENT))]
    picture = "![a fine-tuned model and two styles](pictures/results-plugin.jpg)"
    return "\n\n".join([text_table(titles, lines), "\n".join(verdicts), picture])


TEXTS: dict[str, Callable[[Document], str]] = {
    "survey": survey_text,
    "names": names_text,
    "typed": typed_text,
    "best": best_text,
    "plugin": plugin_text,
}


# --- the protocol -------------------------------------------------------------------------------------------


def protocol(document: Document) -> str:
    """What numbers depend on, of all pieces."""
    protocols = [one["protocol"] for piece in document.values() for one in piece.values()]
    if not protocols:
        return "Nothing is measured yet."
    first, lines = protocols[0], []
    models = {p["model"]["name"]: p["model"]["sha256"][:12] for p in protocols}
    machines = list(dict.fromkeys(p["machine"] for p in protocols))
    how = f"{first['size']} px, {first['dtype']}, batches of {first['batch_size']}"
    how += f"; {machines[0]}" if len(machines) == 1 else ""
    lines.append(f"models: {', '.join(f'{name} (sha256 {sha})' for name, sha in models.items())}; {how}")
    for name, piece in document.items():
        machine = next(one["protocol"]["machine"] for one in piece.values())
        place = f"; {machine}" if len(machines) > 1 else ""
        lines.append(f"{name}: " + "; ".join(counts(one["protocol"]) for one in piece.values()) + place)
    networks = {net["label"]: net["sha256"][:12] for p in protocols for net in p["networks"].values()}
    lines.append("networks: " + ", ".join(f"{label} (sha256 {sha})" for label, sha in networks.items()))
    versions = ", ".join(f"{name} {value}" for name, value in first["versions"].items())
    lines.append(f"versions: fewstep {first['fewstep']}, {versions}")
    return "\n".join(f"* {text}" for text in lines)


def counts(p: Document) -> str:
    """How many pictures a comparison is of, and beside how many."""
    prompts, teacher, real = p["prompts"], p.get("teacher_pictures"), p["reference"]
    parts = [f"{p['images']} pictures a row of {prompts['count']} prompts (sha256 {prompts['sha256'][:12]})"]
    if teacher:
        parts.append(f"{teacher['images']} of the teacher's at guidance {teacher['guidance_scale']:g}")
    if real:
        parts.append(f"{real['images']} drawings ({Path(real['source']).name}, sha256 {real['sha256'][:12]})")
    return ", ".join(parts)


# --- the README ---------------------------------------------------------------------------------------------


def readme(document: Document, out: Path) -> None:
    """Write the headline table into the README, where the page is the project's own."""
    if out == DOCS / "results.md":
        text = README.read_text(encoding="utf-8")
        write_bytes(README, with_table(text, document).encode())


def with_table(text: str, document: Document) -> str:
    """The README with the headline table of the document."""
    if not {"survey", "typed"} <= document.keys():
        return text
    headline = table(HEADLINE, document["survey"]["survey"]["rows"])
    return TABLE.sub(lambda found: f"{found[1]}{PICTURE}\n\n{headline}\n\n{WORDS}\n{found[2]}", text)


if __name__ == "__main__":
    document = read_json(DOCS / "results.json", "figures")
    write_bytes(DOCS / "results.md", page(document).encode())
    readme(document, DOCS / "results.md")
