"""`fewstep compare`: draws with several ways to sample, from the same noise; one table, with its protocol."""

from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from fewstep.configs import CompareConfig
from fewstep.errors import UsageError, option
from fewstep.evaluate import best_guidance, first_row
from fewstep.evaluate.best_guidance import TriedGuidance
from fewstep.evaluate.measure import DIVERSE_IMAGES, DIVERSE_PROMPTS, Measures, Tools, load_tools, measure
from fewstep.evaluate.plots import check_matplotlib, measured, plot
from fewstep.evaluate.prompts import Prompt, prompts_for
from fewstep.evaluate.protocol import in_words, protocol_of, surroundings
from fewstep.evaluate.report import figure, heading, page, paragraph, table, text_table
from fewstep.evaluate.row_pictures import RowPictures, draw, time_of
from fewstep.evaluate.rows import RowSpec, draw_of, loras_of, naming, parse_row
from fewstep.evaluate.table import Row, cells, entry, shared, short
from fewstep.events import counted, note
from fewstep.io import atomic_folder, write_json
from fewstep.models.model import parts_sha256
from fewstep.session import Session
from fewstep.sheets import SheetRow, grid

TEACHER = RowSpec("ddim:100", "ddim", 100, None, ())
TEACHER_IMAGES = 256  # largest number of teacher images, for the first seed set
SHEET_PROMPTS = 8  # prompts on the sheet
NEARLY = 1.1  # times that differ by at most this factor count as equal


class RowResult(NamedTuple):
    """The pictures of a row."""

    pictures: RowPictures
    diverse: RowPictures | None  # several images for each of a few prompts; None without LPIPS
    search: tuple[TriedGuidance, ...] | None  # None if the row does not ask for its best guidance


class Comparison(NamedTuple):
    """The document, and the sheet of pictures."""

    document: dict[str, Any]  # as in table.json
    sheet: Image.Image


def compare(config: CompareConfig) -> dict[str, Any]:
    """The document {"protocol": ..., "rows": [...]}. It and the pictures are written to config.out, or nothing is."""
    check_out(config.out)
    check_matplotlib()
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
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / "table.json").is_file()):
        raise UsageError(
            f"{option('out')} {out} holds something else than a comparison", f"choose another {option('out')}"
        )


def compared(config: CompareConfig, specs: Sequence[RowSpec]) -> Comparison:
    """All rows, drawn and measured."""
    listed = prompts_for(config.prompt_file, config.reference)
    prompts = tuple(islice(cycle(listed.prompts), config.images))
    session = Session(config.model, (), engine=config.engine, dtype=config.dtype, device=config.device)
    config = config.model_copy(update={"dtype": session.engine.dtype})  # as the protocol has it
    size, device = session.facts.size, session.engine.device
    around = surroundings(parts_sha256(session.facts.path), device)
    clip = config.clip_model if config.clip_score else None
    tools = load_tools(config.reference, prompts, size, config.images, config.seed_sets, device, clip)
    best_guidance.check_tools(specs, tools)
    for text in tools.notes:
        note(text)
    teacher = draw_teacher(session, config, prompts, around) if tools.lpips else None
    results = draw_rows(session, config, specs, prompts, around, tools)
    sets = config.seed_sets
    each = counted(results, "measuring", "row", len(results))
    measured = [measure(tools, result.pictures, teacher, result.diverse, prompts * sets, sets) for result in each]
    rows = rows_of(specs, results, measured)
    agreement = next((values.agreement for values in measured if values.agreement), None)
    protocol = protocol_of(config, around, size, listed.source, prompts, tools, teacher, agreement)
    protocol["guidance_search"] = best_guidance.protocol_of(config, rows)
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


# --- drawing -----------------------------------------------------------------------------------------------


def draw_teacher(
    session: Session, config: CompareConfig, prompts: Sequence[Prompt], around: dict[str, Any]
) -> RowPictures:
    """The first images, drawn by the teacher: with many steps and the guidance that the model recommends."""
    wish = draw_of(TEACHER, config, tuple(prompt.text for prompt in prompts[:TEACHER_IMAGES]))
    return draw(session, session.plan(wish), wish, around, f"teacher {TEACHER.text}")


def draw_rows(
    session: Session,
    config: CompareConfig,
    specs: Sequence[RowSpec],
    prompts: Sequence[Prompt],
    around: dict[str, Any],
    tools: Tools,
) -> list[RowResult]:
    """The pictures of each row. Rows with the same LoRAs follow each other, so that each LoRA is plugged in once."""
    results: dict[int, RowResult] = {}
    loras = [loras_of(spec, config.model) for spec in specs]
    for group in dict.fromkeys(loras):
        with naming(specs[loras.index(group)]):
            session.plug(group)
        for number, spec in enumerate(specs):
            if loras[number] == group:
                results[number] = draw_row(session, config, spec, prompts, around, tools)
    pictures = time_rows(session, config, specs, [results[number].pictures for number in range(len(specs))], prompts)
    return [results[number]._replace(pictures=one) for number, one in enumerate(pictures)]


def draw_row(
    session: Session,
    config: CompareConfig,
    spec: RowSpec,
    prompts: Sequence[Prompt],
    around: dict[str, Any],
    tools: Tools,
) -> RowResult:
    """The images of a row at its guidance, all seed sets in a sequence, and the images for its diversity."""
    texts, search = tuple(prompt.text for prompt in prompts), None
    if spec.best:
        search = search_guidance(session, config, spec, texts * config.seed_sets, around, tools)
        spec = spec._replace(guidance_scale=best_guidance.best_of(search))
    wish = draw_of(spec, config, texts * config.seed_sets)
    few = tuple(text for text in islice(dict.fromkeys(texts), DIVERSE_PROMPTS) for _ in range(DIVERSE_IMAGES))
    with naming(spec):
        plan = session.plan(wish)
        for text in plan.notes:
            note(f"{spec.text}: {text.marked}")
        pictures = draw(session, plan, wish, around, spec.text)
        diverse = draw_of(spec, config, few) if tools.lpips else None
        title = f"{spec.text}, diversity"
        return RowResult(pictures, draw(session, plan, diverse, around, title) if diverse else None, search)


def time_rows(
    session: Session,
    config: CompareConfig,
    specs: Sequence[RowSpec],
    pictures: Sequence[RowPictures],
    prompts: Sequence[Prompt],
) -> list[RowPictures]:
    """The rows with new times: config.timing_rounds times a batch of each, in turn, so that load affects all rows."""
    batch = tuple(prompt.text for prompt in prompts[: config.batch_size])
    times: list[list[dict[str, Any]]] = [[] for _ in specs]
    for _ in range(config.timing_rounds):
        for spec, one, found in zip(specs, pictures, times, strict=True):
            session.plug(loras_of(spec, config.model))
            found.append(time_of(session, one.plan, draw_of(spec._replace(guidance_scale=None), config, batch)))
    return [
        one._replace(timed=tuple(found), timed_first=tuple(times[0]))
        for one, found in zip(pictures, times, strict=True)
    ]


def search_guidance(
    session: Session,
    config: CompareConfig,
    spec: RowSpec,
    texts: tuple[str, ...],
    around: dict[str, Any],
    tools: Tools,
) -> tuple[TriedGuidance, ...]:
    """The measures of the row's first images at each guidance of the grid. texts: prompts of all its images."""

    def draw_at(guidance_scale: float, count: int) -> RowPictures:
        wish = draw_of(spec._replace(guidance_scale=guidance_scale), config, texts[:count])
        return draw(session, session.plan(wish), wish, around, f"{spec.text}, guidance {guidance_scale:g}")

    with naming(spec):
        search = best_guidance.tried(config, tools, draw_at)
    for text in best_guidance.at_the_end(spec.text, best_guidance.entries(search)):
        note(text)
    return search


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
