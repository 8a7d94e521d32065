"""Folders of captioned images: name.png + name.txt, metadata.jsonl or metadata.csv."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from fewstep.errors import FewstepError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
CAPTION_KEYS = ("text", "caption", "prompt")
LAYOUTS = "name.png with name.txt beside it, or a metadata.jsonl or metadata.csv with file_name and text"


class Item(NamedTuple):
    """An image and what it shows."""

    path: Path
    caption: str


def read_folder(folder: Path) -> list[Item]:
    """The captioned images of a folder, sorted by path. Raises FewstepError naming what is missing."""
    if not folder.is_dir():
        raise FewstepError(
            f"data folder not found: {folder}", f"--data takes a folder of images with captions: {LAYOUTS}"
        )
    for name, rows in (("metadata.jsonl", _json_rows), ("metadata.csv", _csv_rows)):
        if (folder / name).is_file():
            items = [_from_row(row, folder, f"{folder / name} line {line}") for line, row in rows(folder / name)]
            break
    else:
        items = [Item(path, _sidecar(path)) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES]
    if not items:
        raise FewstepError(f"no images in {folder}", f"put images with captions there: {LAYOUTS}")
    return sorted(items)


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
