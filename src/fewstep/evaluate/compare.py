"""`fewstep compare`: draws with several ways to sample, from the same noise; one table, with its protocol."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from fewstep.configs import CompareConfig
from fewstep.data.prompts import Prompt
from fewstep.errors import UsageError, option
from fewstep.evaluate import best_guidance, first_row
from fewstep.evaluate.evidence import expanded
from fewstep.evaluate.measure import Measures, measure
from fewstep.evaluate.plots import check_matplotlib, measured, plot
from fewstep.evaluate.protocol import in_words, protocol_of
from fewstep.evaluate.report import figure, heading, page, paragraph, table, text_table
from fewstep.evaluate.rows import RowSpec, draw_of, parse_row
from fewstep.evaluate.setup import RowResult, draw_paired, draw_rows, forecast, setup_of, side_of_teacher
from fewstep.evaluate.table import Row, cells, entry, shared, short
from fewstep.events import counted, note
from fewstep.io import atomic_folder, refuse_file, write_json
from fewstep.sheets import SheetRow, grid

SHEET_PROMPTS = 8  # prompts on the sheet
NEARLY = 1.1  # times that differ by at most this factor count as equal


class Comparison(NamedTuple):
    """The document, and the sheet of pictures."""

    document: dict[str, Any]  # as in table.json
    sheet: Image.Image


def compare(config: CompareConfig) -> dict[str, Any]:
    """The document {"protocol": ..., "rows": [...]}. It and the pictures are written to config.out, or nothing is."""
    check_out(config.out)
    check_matplotlib()
    config = expanded(config)
    specs = tuple(parse_row(text) for text in config.rows)
    best_guidance.check_wish(config, specs)
    for spec in specs:
        draw_of(spec, config, ("",))  # raises for a missing LoRA before anything is drawn
    comparison = compared(config, specs)
    with atomic_folder(config.out) as folder:
        write(folder, comparison)
    return comparison.document


def check_out(out: Path) -> None:
    """Raise UsageError for a file, and for a folder that holds something other than an earlier comparison."""
    refuse_file(out)
    if out.is_dir() and any(out.iterdir()) and not (out / "table.json").is_file():
        raise UsageError(
            f"{option('out')} {out} holds something else than a comparison", f"choose another {option('out')}"
        )


def compared(config: CompareConfig, specs: Sequence[RowSpec]) -> Comparison:
    """All rows, drawn and measured."""
    setup = setup_of(config)
    best_guidance.check_tools(specs, setup.tools)
    for text in setup.tools.notes:
        note(text)
    if setup.config.preset:
        note(forecast(setup, specs))
    paired = draw_paired(setup) if setup.paired else None
    side = side_of_teacher(setup)
    results = draw_rows(setup, specs)
    sets, prompts = setup.config.seed_sets, setup.prompts
    each = counted(results, "measuring", "row", len(results))
    values = [
        measure(setup.tools, result.pictures, paired, result.diverse, prompts * sets, sets, side) for result in each
    ]
    rows = rows_of(specs, results, values)
    agreement = next((one.agreement for one in values if one.agreement), None)
    protocol = protocol_of(
        setup.config,
        setup.around,
        setup.session.facts.size,
        setup.source,
        prompts,
        setup.tools,
        paired,
        agreement,
        side,
    )
    protocol["guidance_search"] = best_guidance.protocol_of(setup.config, rows)
    return Comparison({"protocol": protocol, "rows": rows}, sheet_of(rows, results, prompts))


def rows_of(
    specs: Sequence[RowSpec], results: Sequence[RowResult], measured: Sequence[Measures]
) -> list[dict[str, Any]]:
    """The rows, as in table.json. Those after the first include their comparison with it."""
    rows = [
        entry(spec, result.pictures, values, best_guidance.entries(result.search) if result.search else None)
        for spec, result, values in zip(specs, results, measured, strict=True)
    ]
    for number, (row, values) in enumerate(zip(rows, measured, strict=True)):
        row["beside_first"] = first_row.comparison(row, values, rows[0], measured[0]) if number else None
    return rows


# --- writing -----------------------------------------------------------------------------------------------


def sheet_of(rows: Sequence[Row], results: Sequence[RowResult], prompts: Sequence[Prompt]) -> Image.Image:
    """The first images of every row, with one column per prompt."""
    lines = []
    for row, result in zip(rows, results, strict=True):
        notes = [f"{row['nfe']:g} NFE, {1000 * row['time_s']:.0f} ms", f"guidance {row['guidance_scale']:g}"]
        notes += row["row"].partition(":")[0].split(",")[1:]  # eta, gamma, grid
        notes += [short(f"+{lora['file']}:{lora['weight']:g}")[:30] for lora in row["lora"]]
        lines.append(
            SheetRow(f"{row['solver']}:{row['steps']}", "\n".join(notes), result.pictures.first(SHEET_PROMPTS))
        )
    return grid(lines, [prompt.text for prompt in prompts[:SHEET_PROMPTS]])


def markdown(document: dict[str, Any]) -> str:
    """The table, for several rows also their comparison with the first, and then the protocol."""
    rows = document["rows"]
    tables = [text_table(*cells(rows))]
    if found := first_row.table_of(rows):
        tables += [first_row.title(rows), text_table(*found)]
    lines = "\n".join(f"* {line}" for line in in_words(document["protocol"], rows))
    return "\n\n".join([*tables, lines])


def write(folder: Path, comparison: Comparison) -> None:
    """Write the files of a comparison."""
    document, rows = comparison.document, comparison.document["rows"]
    (folder / "table.md").write_text(markdown(document) + "\n", encoding="utf-8")
    write_json(folder / "table.json", document)
    comparison.sheet.save(folder / "sheet.png", "PNG")
    if measured(rows):
        plot(folder / "quality-nfe.png", rows, "nfe", "network evaluations an image (NFE)")
        plot(folder / "quality-time.png", rows, "time_s", "milliseconds an image", scale=1000)
    else:
        note("there are no plots, because no quality was measured")
    (folder / "report.html").write_text(report(folder, document), encoding="utf-8")


def report(folder: Path, document: dict[str, Any]) -> str:
    """The HTML page of the files in `folder`."""
    rows = document["rows"]
    blocks = [table(*cells(rows))]
    if found := first_row.table_of(rows):
        blocks += [heading(first_row.title(rows)), table(*found)]
    for name in ("quality-nfe", "quality-time", "sheet"):
        if (folder / f"{name}.png").is_file():
            with Image.open(folder / f"{name}.png") as image:
                blocks.append(figure(image, name))
    for title, groups in views(rows):
        blocks += [heading(title), *(table(*cells(group)) for group in groups)]
    lines = in_words(document["protocol"], rows)
    blocks += [heading("Protocol"), *(paragraph(line, faint=True) for line in lines)]
    return page(f"fewstep compare: {Path(document['protocol']['model']['name']).name}", blocks)


def views(rows: Sequence[Row]) -> Iterator[tuple[str, list[list[Row]]]]:
    """Groups of rows that cost the same, for each way of counting that has such groups."""
    for title, key, within in (
        ("Equal steps", "steps", 1.0),
        ("Equal NFE", "nfe", 1.0),
        (f"Equal time, within {NEARLY - 1:.0%}", "time_s", NEARLY),
    ):
        if groups := shared(rows, key, within):
            yield title, groups
