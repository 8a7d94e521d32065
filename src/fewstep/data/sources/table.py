"""Tables of captioned images, .jsonl or .csv: every row has an image's file_name and its text."""

from collections.abc import Mapping
from pathlib import Path

from fewstep.data.sources.source import FileSample, SampleList, Source
from fewstep.data.tables import FILE_NAME, TABLES
from fewstep.errors import FewstepError, is_text
from fewstep.io import is_file

LAYOUT = "a .jsonl or .csv table with file_name and text"
CAPTION_KEYS = ("text", "caption", "prompt")


def takes(given: str) -> bool:
    """Whether this is the path of a table."""
    return Path(given).suffix.lower() in TABLES and is_file(Path(given))


def open_source(given: str, captioned: bool) -> Source:
    """The table's images, sorted by path. They have captions, whether these were asked for or not."""
    return SampleList(sorted(table_samples(Path(given))))


def table_samples(table: Path) -> list[FileSample]:
    """The table's images, row by row; file names are relative to the table's folder.

    Raises FewstepError naming the first row without a file_name, a file or a caption.
    """
    rows = TABLES[table.suffix.lower()](table)
    return [_sample(row, table.parent, f"{table} line {line}") for line, row in rows]


def _sample(row: Mapping[str, object], folder: Path, where: str) -> FileSample:
    name = row.get(FILE_NAME)
    if not isinstance(name, str) or not name:
        raise FewstepError(f"{where} has no file_name", "give every row the image's file_name")
    path = folder / name
    if not is_file(path):
        raise FewstepError(
            f"{where} names {name}, which is not in {folder}", "correct the file_name, or remove the row"
        )
    caption = caption_of(row)
    if caption is None:
        raise FewstepError(
            f"{where} has no caption", f"give every row a {', '.join(CAPTION_KEYS[:-1])} or {CAPTION_KEYS[-1]}"
        )
    return FileSample(path, (caption,))


def caption_of(row: Mapping[str, object]) -> str | None:
    """The caption in a row, without spaces around it; None if the row has none, or one that is not text."""
    caption = next((row[key] for key in CAPTION_KEYS if row.get(key)), None)
    return caption.strip() or None if isinstance(caption, str) and is_text(caption) else None
