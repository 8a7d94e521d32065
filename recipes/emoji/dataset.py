"""Builds the emoji image folder: one list of concepts drawn in twelve styles, with captions.

    python -m recipes.emoji.dataset [--out DIR] [--downloads DIR] [--size 128] [--sheet FILE.png]

It writes OUT/<style>/<code-points>.png (RGB on white), OUT/metadata.jsonl (one line per image), OUT/dataset.json (its
sources) and OUT/contact-sheet.png. OUT/base.jsonl, OUT/high-contrast.jsonl and so on are tables of one split for
`--data`. The drawings come from `npm pack`; captions.STYLES has their licences.
"""

import json
import multiprocessing
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

from PIL import Image, ImageDraw, ImageFont
from pydantic import Field

from fewstep.cli import main_of
from fewstep.configs import Config
from fewstep.errors import FewstepError
from fewstep.io import atomic_folder, cache_dir, sha256_bytes, write_bytes
from recipes.emoji.built import read_metadata
from recipes.emoji.captions import STYLES, main_caption
from recipes.emoji.drawing import CONCEPTS_PACKAGE, DrawingJob, make, read_drawings
from recipes.emoji.names import is_held_out, read_concepts
from recipes.emoji.packages import PACKAGES, fetch, report

BUILDER = 2  # raise it when the drawings or the metadata change, so that the folder is built again
PROCESSES = 2

SHEET_CONCEPTS = "1f600 1f916 1f420 1f431 1f3f0 1f355 1f680 2764 1f3b8 1f333 2614 1f46e 1f44d 1f697 26bd 1f551"


# --- the folder ---------------------------------------------------------------------------------------------


def describe(job: DrawingJob) -> dict[str, Any]:
    """One line of metadata.jsonl."""
    style, concept = STYLES[job.style], job.concept
    held_out = style.split == "base" and is_held_out(concept.code, job.style)
    return {
        "file_name": f"{job.style}/{job.file.name}", "text": main_caption(job.style, concept.label),
        "style": job.style, "concept": concept.code, "label": concept.label, "tags": list(concept.tags),
        "group": concept.group, "split": "held-out" if held_out else style.split, "license": style.licence,
    }  # fmt: skip


def recipe(size: int, styles: Iterable[str]) -> dict[str, Any]:
    """The facts that decide the folder's content. Equal recipes give equal folders."""
    packages = {CONCEPTS_PACKAGE, *(STYLES[style].package for style in styles)}
    return {"builder": BUILDER, "size": size,
            "styles": {style: main_caption(style, "") for style in styles},
            "packages": {name: PACKAGES[name] for name in sorted(packages)}}  # fmt: skip


def build(out: Path, downloads: Path, size: int = 128, styles: Iterable[str] = tuple(STYLES),
          processes: int = PROCESSES) -> list[dict[str, Any]]:  # fmt: skip
    """The lines of OUT/metadata.jsonl. OUT is made first, if it does not exist.

    Everything is written to a folder next to `out`, which is renamed at the end. A second run continues the folder of
    an interrupted one.
    """
    styles = tuple(styles)
    current = json.loads(json.dumps(recipe(size, styles)))
    stamp = out / "dataset.json"
    if stamp.exists() and json.loads(stamp.read_text())["recipe"] == current:
        report(f"{out} is complete and up to date: nothing to do")
        lines = read_metadata(out)
        write_tables(out, lines)
        return lines
    if out.exists() and any(out.iterdir()) and not stamp.exists():
        raise FewstepError(f"{out} holds files that this recipe did not write", "name another folder with --out")
    key = sha256_bytes(json.dumps(current).encode())[:12]
    partial = out.with_name(f".{out.name}.{key}.partial")
    lines, skipped = fill(partial, downloads, size, styles, processes)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (partial / "metadata.jsonl").write_text(text, encoding="utf-8")
    (partial / stamp.name).write_text(json.dumps({"recipe": current, "skipped": skipped}, indent=1))
    contact_sheet(partial, lines).save(partial / "contact-sheet.png")
    write_tables(partial, lines)
    with atomic_folder(out) as folder:
        folder.rmdir()
        partial.rename(folder)
    return lines


def write_tables(folder: Path, lines: list[dict[str, Any]]) -> None:
    """Write OUT/base.jsonl and one OUT/<style>.jsonl for each style that is not in the base, for --data."""
    tables: dict[str, list[str]] = {}
    for line in lines:
        if line["split"] != "held-out":
            name = line["style"] if line["split"] == "style" else "base"
            tables.setdefault(name, []).append(json.dumps(line, ensure_ascii=False) + "\n")
    for name, rows in tables.items():
        write_bytes(folder / f"{name}.jsonl", "".join(rows).encode())


def fill(folder: Path, downloads: Path, size: int, styles: Iterable[str],
         processes: int) -> tuple[list[dict[str, Any]], dict[str, str]]:  # fmt: skip
    """Draw every image into `folder`. Returns their metadata, and file -> reason for the skipped ones."""
    concepts = read_concepts(fetch(CONCEPTS_PACKAGE, downloads))
    lines, skipped = [], {}
    for style in styles:
        began = time.monotonic()
        (folder / style).mkdir(parents=True, exist_ok=True)
        drawings = read_drawings(style, downloads, concepts)
        jobs = [DrawingJob(style, concepts[code], drawing, folder / style / f"{code}.png", size)
                for code, drawing in drawings.items()]  # fmt: skip
        for number, (job, problem) in enumerate(zip(jobs, results_of(jobs, processes), strict=True), 1):
            if problem:
                skipped[f"{style}/{job.file.name}"] = problem
            else:
                lines.append(describe(job))
            if number % 50 == 0 or number == len(jobs):
                rate = number / (time.monotonic() - began)
                report(f"{style}: {number}/{len(jobs)} at {rate:.0f} images/s", done=number == len(jobs))
    return lines, skipped


def results_of(jobs: list[DrawingJob], processes: int) -> Iterator[str]:
    """The results of `make` in the order of `jobs`."""
    if processes < 2:
        yield from map(make, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(make, jobs, chunksize=16)


# --- for people ---------------------------------------------------------------------------------------------


def table(lines: list[dict[str, Any]]) -> str:
    """Pairs and licence of every style, and the totals of the splits."""
    rows = [f"{'style':15}{'pairs':>7}  licence"]
    for style in dict.fromkeys(line["style"] for line in lines):
        rows.append(f"{style:15}{sum(line['style'] == style for line in lines):7}  {STYLES[style].licence}")
    splits = {split: sum(line["split"] == split for line in lines) for split in ("base", "held-out", "style")}
    concepts = len({line["concept"] for line in lines})
    totals = ", ".join(f"{name} {count}" for name, count in splits.items())
    return "\n".join([*rows, f"{'all':15}{len(lines):7}", f"{concepts} concepts; {totals}"])


def contact_sheet(folder: Path, lines: list[dict[str, Any]], cell: int = 96) -> Image.Image:
    """A sheet whose rows are styles and whose columns are sixteen concepts. A grey cell has no drawing."""
    codes = SHEET_CONCEPTS.split()
    files = {(line["style"], line["concept"]): folder / line["file_name"] for line in lines}
    labels = {line["concept"]: line["label"] for line in lines}
    styles = list(dict.fromkeys(line["style"] for line in lines))
    margin, head, font = 130, 30, ImageFont.load_default(13)
    sheet = Image.new("RGB", (margin + cell * len(codes), head + cell * len(styles)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, code in enumerate(codes):
        pen.text((margin + cell * column + 4, 8), labels.get(code, code)[:13], "black", font)
    for row, style in enumerate(styles):
        pen.text((6, head + cell * row + cell // 2 - 8), style, "black", font)
        for column, code in enumerate(codes):
            at = (margin + cell * column + 2, head + cell * row + 2)
            if (style, code) in files:
                with Image.open(files[style, code]) as image:
                    sheet.paste(image.resize((cell - 4, cell - 4), Image.Resampling.LANCZOS), at)
            else:
                pen.rectangle((*at, at[0] + cell - 5, at[1] + cell - 5), "lightgrey")
    return sheet


class DatasetConfig(Config):
    """Build the emoji image folder: one list of concepts drawn in twelve styles, with captions."""

    out: Path = cache_dir() / "emoji" / "images"
    """The image folder."""
    downloads: Path = cache_dir() / "downloads"
    """The folder for the npm tarballs."""
    size: Annotated[int, Field(ge=16, le=1024)] = 128
    """Side of the images, in pixels."""
    sheet: Path | None = None
    """Also write the contact sheet to this PNG."""


def run(config: DatasetConfig) -> None:
    """Build the folder and print its content."""
    lines = build(config.out, config.downloads, config.size)
    if config.sheet:
        contact_sheet(config.out, lines).save(config.sheet)
    skipped = json.loads((config.out / "dataset.json").read_text())["skipped"]
    print(table(lines))
    print(f"{len(skipped)} skipped as empty or broken; images and contact-sheet.png in {config.out}")


if __name__ == "__main__":
    sys.exit(main_of(DatasetConfig, run))
