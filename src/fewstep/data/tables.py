"""The rows of tables, .jsonl or .csv, with their line numbers."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from fewstep.errors import FewstepError

FILE_NAME = "file_name"
DELIMITERS = ",;\t|"  # spreadsheets write ; between cells in countries where half is written 0,5

NumberedRow = tuple[int, Mapping[str, object]]  # the number of the row's last line, and its cells by column name


def read_text(path: Path) -> str:
    """The file's text, without the byte order mark with which spreadsheets and Windows begin a file.

    Raises FewstepError naming the file if it is not UTF-8 or cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FewstepError(f"{path} is not UTF-8 text ({error.reason})", "save it as UTF-8") from None
    except OSError as error:
        raise FewstepError(f"cannot read {path} ({error.strerror or error})", "make it readable") from None
    if "\0" in text:
        raise FewstepError(f"{path} is not UTF-8 text (it holds zeros, as UTF-16 does)", "save it as UTF-8")
    return text


def _json_rows(path: Path) -> Iterator[NumberedRow]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # ValueError: no JSON, or a number of too many digits
                reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).partition(":")[0]
                raise FewstepError(
                    f"{path} line {number} is not JSON ({reason})", "write one JSON object on each line"
                ) from None
            if not isinstance(row, dict):
                raise FewstepError(f"{path} line {number} is not a JSON object", "write one JSON object on each line")
            yield number, row


def _csv_rows(path: Path) -> Iterator[NumberedRow]:
    text, line = read_text(path), 1
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
        for row in reader:
            line = reader.line_num
            if any(row.pop(None, [])):  # DictReader's key for cells beyond the header
                raise FewstepError(
                    f"{path} line {line} has more cells than the header",
                    f'write a text that contains {reader.reader.dialect.delimiter} in quotes: "..."',
                )
            yield line, row
    except csv.Error as error:
        raise FewstepError(f"{path} line {line + 1} is not CSV ({error})", "save the table as CSV again") from None


def _delimiter(text: str) -> str:
    """The character between cells: the first of DELIMITERS by which the header has a cell file_name, else a comma."""
    header = text.split("\n", 1)[0].strip("\r")
    return next((mark for mark in DELIMITERS if FILE_NAME in next(csv.reader([header], delimiter=mark), [])), ",")


TABLES = {".jsonl": _json_rows, ".csv": _csv_rows}  # the end of a table's name -> the function that reads it
