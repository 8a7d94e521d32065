"""Data sets of the Hugging Face hub, by the package `datasets`, which downloads them once into its own cache."""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.data.captions import CAPTION_KEYS, captions_in, no_caption
from fewstep.data.found import SUFFIXES
from fewstep.data.sources.parquet import image_bytes, image_column, lacking
from fewstep.data.sources.source import Broken, Item, SampleList, Source
from fewstep.data.tables import Cells, cells
from fewstep.errors import FewstepError
from fewstep.events import doing

LAYOUT = "a data set of the hub, owner/name[@revision][:split]"
_WORD = r"[A-Za-z0-9][\w.-]*"
_NAME = re.compile(rf"(hub:)?(?P<id>{_WORD}/{_WORD})(@(?P<revision>[\w./-]+))?(:(?P<split>[\w\[\]:%+-]+))?")
FILES = (*SUFFIXES, ".jsonl", ".csv", ".parquet", ".tar", ".zip", ".7z", ".rar", ".gz", ".tgz")  # no ends of a name


class DataSetName(NamedTuple):
    """A split of a data set on the hub."""

    repository: str  # owner/name
    revision: str | None  # None = the newest
    split: str

    def __str__(self) -> str:
        return self.repository + (f"@{self.revision}" if self.revision else "") + f":{self.split}"


class HubSample(NamedTuple):
    """A sample whose image is in a row of a data set."""

    data: Any  # datasets.Dataset
    name: DataSetName
    number: int  # of the row
    column: str  # with the image
    captions: tuple[str, ...]
    columns: Cells  # as Sample's
    size: tuple[int, int] | None = None  # as Sample's

    @property
    def key(self) -> str:
        """The data set and the row's number, counted from 1."""
        return f"{self.name} row {self.number + 1}"

    @property
    def stamp(self) -> str | None:
        """What `datasets` calls the state of the data set, with the row's number."""
        return f"{self.name} {self.data._fingerprint} {self.column} {self.number}"

    def open(self) -> bytes:
        """The image's file. Raises FewstepError if there is none."""
        return image_bytes(self.data[self.number][self.column], self.key, Path())


def data_set_name(given: str) -> DataSetName | None:
    """The data set of this name, owner/name[@revision][:split]; None for what is no such name.

    A name that begins with a folder of this machine is a path, unless hub: stands before it.
    """
    found = _NAME.fullmatch(given)
    if found is None or found["id"].lower().endswith(FILES):
        return None
    if found[1] is None and Path(given.partition("/")[0]).is_dir():
        return None
    return DataSetName(found["id"], found["revision"], found["split"] or "train")


def takes(given: str) -> bool:
    """Whether this is the name of a data set on the hub, and no path."""
    return data_set_name(given) is not None and not Path(given).exists()


def open_source(given: str, captioned: bool, columns: Collection[str]) -> Source:
    """The data set's images, row by row. It is downloaded if it is not on this machine."""
    name = data_set_name(given)
    assert name is not None, "`takes` took it"
    return SampleList(list(_items(loaded(name), name, captioned, columns)))


@doing("downloading the data set")
def loaded(name: DataSetName) -> Any:
    """The datasets.Dataset, images not decoded. Raises FewstepError if it is not to be had."""
    try:
        import datasets
    except ImportError:
        raise FewstepError(
            f"{name.repository} is no path here, and data sets of the hub need the package datasets",
            "check the path, or pip install fewstep[data]",
        ) from None
    try:
        with _quiet(datasets):
            return datasets.load_dataset(name.repository, revision=name.revision, split=name.split)
    except Exception as error:  # whatever is wrong with the name, the network or a file there
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise FewstepError(
            f"data not found: {name.repository} is no path here, and no data set that the hub gives ({reason})",
            "check the path, or the name owner/name[@revision][:split], the connection and your access (hf auth login)",
        ) from error


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Inside the block the package draws no bars."""
    shows = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shows:
            datasets.enable_progress_bars()


def _items(data: Any, name: DataSetName, captioned: bool, columns: Collection[str]) -> Iterator[Item]:
    import datasets

    kinds = data.features
    image = image_column(str(name), kinds.arrow_schema, named=False)
    read = [column for column in kinds if column in {*CAPTION_KEYS, *columns}]
    if captioned and not set(CAPTION_KEYS) & set(read):
        raise lacking(str(name), "column for captions, such as text", list(kinds))
    if isinstance(kinds[image], datasets.Image):
        data = data.cast_column(image, datasets.Image(decode=False))
    rows = data.select_columns(read) if read else ({} for _ in range(len(data)))
    for number, row in enumerate(rows):
        sample = HubSample(data, name, number, image, captions_in(row), cells(row, columns))
        lacks = captioned and not sample.captions
        yield Broken(sample.key, no_caption(sample.key)) if lacks else sample
