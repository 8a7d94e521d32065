"""Parquet tables of captioned images: the images are in a column of the table, or are files that it names."""

import threading
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.data.captions import CAPTION_KEYS, captions_in, no_caption
from fewstep.data.places import asked, is_address, is_pattern, missing, named_files, open_file, stamp_of
from fewstep.data.sources.shards import Shards
from fewstep.data.sources.source import Broken, FileSample, Item, Source
from fewstep.data.sources.table import row_sample
from fewstep.data.tables import FILE_NAME, Cells, cells
from fewstep.errors import FewstepError
from fewstep.io import is_file

LAYOUT = "a .parquet table, or several as shards, with the images in a column, or file_name"
IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")  # of bytes
AT_ONCE = 16  # images read together
WINDOWS = 8  # of these that are kept, for threads that are not in step
LISTED = 4096  # rows listed together
CURSORS = threading.Lock()


def takes(given: str) -> bool:
    """Whether this is a .parquet table, a pattern of such tables or the address of one."""
    if not given.lower().endswith(".parquet"):
        return False
    return is_address(given) or is_file(Path(given)) or is_pattern(given)


def open_source(given: str, captioned: bool, columns: Collection[str]) -> Source:
    """The tables' images, in the tables' order, row by row."""
    _pyarrow()
    return Shards(named_files(given), lambda place, left_out: _samples(place, captioned, columns))


class RowSample(NamedTuple):
    """A sample whose image is in a row of a Parquet table."""

    table: str  # path or address
    number: int  # of the row
    column: str  # with the image
    captions: tuple[str, ...]
    columns: Cells
    size: tuple[int, int] | None = None  # as Sample's

    @property
    def key(self) -> str:
        """The table and the row's number, counted from 1."""
        return f"{self.table} row {self.number + 1}"

    @property
    def stamp(self) -> str | None:
        """The table's, with the row's number."""
        stamp = _stamp(self.table)
        return stamp and f"{stamp} {self.column} {self.number}"

    def open(self) -> bytes:
        """The image's file. Raises FewstepError if there is none."""
        with CURSORS:
            found = _cursor(self.table, self.column, _stamp(self.table)).cell(self.number)
        return image_bytes(found, self.key, Path(self.table).parent)


def image_bytes(cell: object, key: str, folder: Path) -> bytes:
    """The image's file in a cell: bytes, or {bytes, path} as in data sets of the hub, where one of the two may be None.

    key: what errors call it. folder: to which a path is relative.
    """
    data = cell.get("bytes") if isinstance(cell, Mapping) else cell
    path = cell.get("path") if isinstance(cell, Mapping) else None
    if isinstance(data, bytes):
        return data
    if isinstance(path, str) and is_file(folder / path):
        return FileSample(folder / path, ()).open()
    raise FewstepError(f"no image in {key}", "take the row out of the table")


def _samples(place: str, captioned: bool, columns: Collection[str]) -> Iterator[Item]:
    """The table's images, row by row; what is broken is among them."""
    try:
        yield from _rows(place, captioned, columns)
    except FewstepError as error:
        yield Broken(place, error)


def _rows(place: str, captioned: bool, columns: Collection[str]) -> Iterator[Item]:
    table = _opened(place)
    schema, start = table.schema_arrow, 0
    image = image_column(place, schema, not is_address(place))
    read = [name for name in schema.names if name in {*CAPTION_KEYS, *columns} or name == image == FILE_NAME]
    if captioned and not set(CAPTION_KEYS) & set(read):
        raise lacking(place, f"column for captions, such as {CAPTION_KEYS[1]}", schema.names)
    batches = table.iter_batches(batch_size=LISTED, columns=read)
    while (batch := asked(place, lambda: next(batches, None))) is not None:
        rows = batch.to_pylist() if read else [{}] * len(batch)
        for number, row in enumerate(rows, start):
            yield _item(place, number, image, row, captioned, columns)
        start += len(rows)


def _item(place: str, number: int, image: str, row: Cells, captioned: bool, columns: Collection[str]) -> Item:
    key = f"{place} row {number + 1}"
    if image == FILE_NAME:
        return row_sample(row, Path(place).parent, key, columns)
    captions = captions_in(row)
    if captioned and not captions:
        return Broken(key, no_caption(key))
    return RowSample(place, number, image, captions, cells(row, columns))


def image_column(place: str, schema: Any, named: bool = True) -> str:
    """The column with the images: of bytes with a usual name, or of {bytes, path}, or file_name.

    named: whether file_name will do. Raises FewstepError that names the columns there are.
    """
    kinds = {field.name: str(field.type) for field in schema}
    structs = [name for name, kind in kinds.items() if kind.startswith("struct<") and "bytes: " in kind]
    known = [name for name in IMAGE_COLUMNS if name in structs or "binary" in kinds.get(name, "")]
    for name in (*known, *structs, *([FILE_NAME] if named and FILE_NAME in kinds else [])):
        return str(name)
    raise lacking(place, "column of images (image, of bytes or of {bytes, path}) and no file_name", schema.names)


def lacking(place: str, what: str, names: Sequence[str]) -> FewstepError:
    """The error for a table without a column that is needed. names: of the columns that it has."""
    return FewstepError(f"{place} has no {what}", f"its columns are {', '.join(names) or 'none'}: rename one")


class Cursor:
    """A place in a column of a table. Reading on from it is cheap; going back far begins the row group anew."""

    def __init__(self, place: str, column: str) -> None:
        self.place, self.column = place, column
        self.table = _opened(place)
        counts = [self.table.metadata.row_group(group).num_rows for group in range(self.table.num_row_groups)]
        self.starts = [sum(counts[:group]) for group in range(len(counts) + 1)]
        self.group, self.batches = -1, iter(())
        self.windows = deque[tuple[int, list[object]]](maxlen=WINDOWS)  # number of the first row, and what is in them

    def cell(self, number: int) -> object:
        """What stands in the row of this number."""
        group = max(group for group, start in enumerate(self.starts[:-1]) if start <= number)
        if group != self.group or number < self.windows[0][0]:
            self.group = group
            self.batches = self.table.iter_batches(AT_ONCE, row_groups=[group], columns=[self.column])
            self.windows.clear()
            self.windows.append((self.starts[group], []))
        while number >= (start := self.windows[-1][0] + len(self.windows[-1][1])):
            self.windows.append((start, asked(self.place, lambda: next(self.batches)).column(0).to_pylist()))
        first, rows = next(window for window in reversed(self.windows) if window[0] <= number)
        return rows[number - first]


@lru_cache(maxsize=2)
def _cursor(place: str, column: str, stamp: str | None) -> Cursor:
    """The cursor of a column that is in use."""
    return Cursor(place, column)


@lru_cache(maxsize=1024)
def _stamp(place: str) -> str | None:
    return stamp_of(place)


def _opened(place: str) -> Any:
    """The table, open. A column is read piece by piece, since all its images may be more than memory has."""
    import pyarrow.parquet

    file = open_file(place) if is_address(place) else place
    try:
        return pyarrow.parquet.ParquetFile(file, buffer_size=2**20)
    except FileNotFoundError:
        raise missing(place) from None
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise FewstepError(f"{place} is no whole Parquet table ({error})", "get the file again") from None


def _pyarrow() -> Any:
    """The package that reads Parquet. Raises FewstepError if it is not installed."""
    try:
        import pyarrow
    except ImportError:
        raise FewstepError("Parquet tables need pyarrow, which is not installed", "pip install fewstep[data]") from None
    return pyarrow
