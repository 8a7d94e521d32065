"""Tables of captioned images, .jsonl or .csv: every row has an image's file_name and its text."""

from collections.abc import Collection, Iterator
from pathlib import Path

from fewstep.data.sources.source import Broken, FileSample, SampleList, Source
from fewstep.data.tables import TABLES, Cells, image_row, read_text
from fewstep.errors import FewstepError
from fewstep.io import is_file

LAYOUT = "a .jsonl or .csv table with file_name and text"


def takes(given: str) -> bool:
    """Whether this is the path of a table."""
    return Path(given).suffix.lower() in TABLES and is_file(Path(given))


def open_source(given: str, captioned: bool, columns: Collection[str]) -> Source:
    """The table's images, sorted by path. They have captions, whether these were asked for or not."""
    return SampleList(sorted_by_path(table_samples(Path(given), columns)))


def sorted_by_path(samples: Iterator[FileSample | Broken]) -> list[FileSample | Broken]:
    """The samples, and what is broken, sorted by their keys, which are paths."""
    return sorted(samples, key=lambda sample: Path(sample.key))


def table_samples(table: Path, columns: Collection[str]) -> Iterator[FileSample | Broken]:
    """The table's images, row by row; file names are relative to the table's folder.

    A row without a file_name, a file or a caption is broken. Raises FewstepError for a table that cannot be read.
    """
    for line, row in TABLES[table.suffix.lower()](read_text(table), str(table)):
        yield row_sample(row, table.parent, f"{table} line {line}", columns)


def row_sample(row: Cells | FewstepError, folder: Path, where: str, columns: Collection[str]) -> FileSample | Broken:
    """The image that a row names, relative to the folder. where: what errors call the row."""
    try:
        found = image_row(row, where, columns)
        path = folder / found.name
        if not is_file(path):
            raise not_there(where, found.name, str(folder))
        return FileSample(path, found.captions, columns=found.cells)
    except FewstepError as error:
        return Broken(where, error)


def not_there(where: str, name: str, folder: str) -> FewstepError:
    """The error for a row that names a file which is not there."""
    return FewstepError(f"{where} names {name}, which is not in {folder}", "correct the file_name, or remove the row")
