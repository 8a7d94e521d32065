"""Captioned images: folders of name.png + name.txt, and tables, .jsonl or .csv."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from fewstep.errors import FewstepError
from fewstep.events import doing

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
CAPTION_KEYS = ("text", "caption", "prompt")
LAYOUTS = "a folder of name.png and name.txt, or a .jsonl or .csv table with file_name and text"


class Item(NamedTuple):
    """An image and what it shows."""

    path: Path
    caption: str


@doing("listing the images")
def read_items(source: Path) -> list[Item]:
    """The captioned images of a folder or table, sorted by path. Raises FewstepError naming what is missing.

    source: a folder, or a .jsonl or .csv table whose file names are relative to the table's own folder.
    """
    if not source.exists():
        raise FewstepError(f"data not found: {source}", f"--data takes images with captions: {LAYOUTS}")
    tables = [source] if source.is_file() else [source / f"metadata{suffix}" for suffix in TABLES]
    table = next((path for path in tables if path.is_file()), None)
    if table is not None:
        items = _from_table(table)
    else:
        items = [Item(path, _sidecar(path)) for path in source.rglob("*") if path.suffix.lower() in SUFFIXES]
    if not items:
        raise FewstepError(f"no images in {source}", f"--data takes images with captions: {LAYOUTS}")
    return sorted(items)


def _from_table(path: Path) -> list[Item]:
    if path.suffix.lower() not in TABLES:
        raise FewstepError(f"{path} is no table of images", f"--data takes images with captions: {LAYOUTS}")
    rows = TABLES[path.suffix.lower()](path)
    return [_from_row(row, path.parent, f"{path} line {line}") for line, row in rows]


def _json_rows(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise FewstepError(
                    f"{path} line {number} is not JSON ({error.msg})", "write one JSON object a line"
                ) from None
            if not isinstance(row, dict):
                raise FewstepError(f"{path} line {number} is not a JSON object", "write one JSON object a line")
            yield number, row


def _csv_rows(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise FewstepError(
            f"{path} line {reader.reader.line_num} is not CSV ({error})", "save the table as CSV again"
        ) from None


TABLES = {".jsonl": _json_rows, ".csv": _csv_rows}


def _text(path: Path) -> str:
    """The file's text; spreadsheets begin UTF-8 files with a byte order mark."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FewstepError(f"{path} is not UTF-8 text ({error.reason})", "save it as UTF-8") from None


def _from_row(row: Mapping[str, object], folder: Path, where: str) -> Item:
    name, caption = row.get("file_name"), next((row[key] for key in CAPTION_KEYS if row.get(key)), None)
    if not isinstance(name, str) or not name:
        raise FewstepError(f"{where} has no file_name", "give every row the image's file_name")
    path = folder / name
    if not path.is_file():
        raise FewstepError(
            f"{where} names {name}, which is not in {folder}", "correct the file_name, or remove the row"
        )
    if not isinstance(caption, str):
        raise FewstepError(
            f"{where} has no caption", f"give every row a {', '.join(CAPTION_KEYS[:-1])} or {CAPTION_KEYS[-1]}"
        )
    return Item(path, caption.strip())


def _sidecar(path: Path) -> str:
    for suffix in (".txt", ".caption"):
        if path.with_suffix(suffix).is_file():
            return path.with_suffix(suffix).read_text(encoding="utf-8", errors="replace").strip()
    raise FewstepError(f"no caption for {path}", f"write it to {path.with_suffix('.txt').name} beside the image")
