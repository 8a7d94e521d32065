"""The rows of tables, .jsonl or .csv, with their line numbers."""

import csv
import io
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from fewstep.data.captions import captions_in, decoded, json_object, no_caption
from fewstep.errors import FewstepError

FILE_NAME = "file_name"
DELIMITERS = ",;\t|"  # spreadsheets write ; between cells in countries where half is written 0,5

Cells = Mapping[str, object]  # cells by column name
NumberedRow = tuple[int, Cells | FewstepError]  # the number of the row's last line, and its cells, or what is wrong


class ImageRow(NamedTuple):
    """What a row of a table says about an image."""

    name: str  # of its file
    captions: tuple[str, ...]  # at least one
    cells: Cells  # of the columns that were asked for


def cells(row: Cells, columns: Collection[str]) -> Cells:
    """The cells of these columns, as far as the row has them."""
    return {column: row[column] for column in columns if column in row}


def image_row(row: Cells | FewstepError, where: str, columns: Collection[str]) -> ImageRow:
    """What the row says. Raises FewstepError for a row without a file_name or a caption."""
    if isinstance(row, FewstepError):
        raise row
    name = row.get(FILE_NAME)
    if not isinstance(name, str) or not name:
        raise FewstepError(f"{where} has no file_name", "give every row the image's file_name")
    captions = captions_in(row)
    if not captions:
        raise no_caption(where)
    return ImageRow(name, captions, cells(row, columns))


def read_text(path: Path) -> str:
    """The file's text, as `decoded`. Raises FewstepError naming the file if it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FewstepError(f"cannot read {path} ({error.strerror or error})", "make it readable") from None
    return decoded(data, str(path))


def _json_rows(text: str, name: str) -> Iterator[NumberedRow]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json_object(line, f"{name} line {number}")
            except FewstepError as error:
                yield number, error


def _csv_rows(text: str, name: str) -> Iterator[NumberedRow]:
    line = 1
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
        for row in reader:
            line = reader.line_num
            if any(row.pop(None, [])):  # DictReader's key for cells beyond the header
                yield (
                    line,
                    FewstepError(
                        f"{name} line {line} has more cells than the header",
                        f'write a text that contains {reader.reader.dialect.delimiter} in quotes: "..."',
                    ),
                )
            else:
                yield line, row
    except csv.Error as error:  # after which no row can be told from the next
        yield (
            line + 1,
            FewstepError(f"{name} line {line + 1} is not CSV ({error})", "save the table as CSV again"),
        )


def _delimiter(text: str) -> str:
    """The character between cells: the first of DELIMITERS by which the header has a cell file_name, else a comma."""
    header = text.split("\n", 1)[0].strip("\r")
    return next((mark for mark in DELIMITERS if FILE_NAME in next(csv.reader([header], delimiter=mark), [])), ",")


TABLES = {".jsonl": _json_rows, ".csv": _csv_rows}  # the end of a table's name -> the rows of its text; name: in errors
