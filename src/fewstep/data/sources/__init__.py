"""Sources of captioned images: one file for each kind, found by being in this folder.

A file that is a source has three things: LAYOUT, which says in words what it reads; `takes(given)`, which says whether
it reads a path or name; and `open_source(given, captioned, columns)`, which gives back a Source.
"""

import shlex
from collections.abc import Collection
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import NamedTuple, Protocol, cast

from fewstep.configs.data import Selection
from fewstep.data.found import ARCHIVES
from fewstep.data.places import is_address
from fewstep.data.sources.filters import EVERYTHING, Filters, filters_of, kept, write_skipped
from fewstep.data.sources.source import Broken, FileSample, Sample, SampleList, Source
from fewstep.errors import FewstepError
from fewstep.events import doing, note
from fewstep.io import is_file, is_folder

__all__ = ["Broken", "FileSample", "Listing", "Sample", "SampleList", "Source", "list_samples", "listed", "open_source"]


class Kind(Protocol):
    """What a file of this folder has if it is a source."""

    LAYOUT: str

    def takes(self, given: str) -> bool:
        """Whether this kind of source reads what was given."""

    def open_source(self, given: str, captioned: bool, columns: Collection[str]) -> Source:
        """The source that was given. Unless captioned, its samples may be without captions. columns: they carry."""


class Listing(NamedTuple):
    """All samples of a source."""

    samples: list[Sample]  # at least one
    notes: tuple[str, ...]  # a line about what of the source is left out, if anything is
    broken: list[Broken]  # what was left out because it is broken


def kinds() -> list[Kind]:
    """The kinds of source that there are, in the order of their files' names."""
    files = [import_module(f"{__name__}.{file.name}") for file in iter_modules(__path__)]
    return [cast(Kind, file) for file in files if hasattr(file, "takes")]


def open_source(given: str | Path, captioned: bool = True, columns: Collection[str] = ()) -> Source:
    """The captioned images at a path, or of a name, of the first kind of source that takes it.

    captioned: False if captions are not needed; then images without one are read too. columns: what its samples are to
    carry of what a table, or the JSON beside an image, says.
    Raises FewstepError for what no kind of source takes, and for what is broken.
    """
    for kind in kinds():
        if kind.takes(str(given)):
            return kind.open_source(str(given), captioned, columns)
    raise _refusal(str(given))


@doing("listing the images")
def list_samples(given: str | Path, captioned: bool = True, filters: Filters = EVERYTHING) -> Listing:
    """The samples of the source at a path, or of a name, in its own order, and what is left out.

    captioned: as of `open_source`. Raises FewstepError if there are none, or for the first that is broken unless the
    filters leave these out; an image without a caption is broken where captions are needed.
    """
    source = open_source(given, captioned, filters.columns)
    found = kept(source, filters, captioned)
    left_out = ", ".join(filter(None, (source.left_out, found.left_out)))
    if not found.samples:
        raise FewstepError(
            f"no images in {given}{f' (left out: {left_out})' if left_out else ''}", _pattern_in(given) or _hint()
        )
    return Listing(found.samples, (f"left out of {given}: {left_out}",) if left_out else (), found.broken)


def listed(config: Selection, given: str | Path, captioned: bool, out: Path | None) -> list[Sample]:
    """The samples of a source that count for a command, as of `list_samples`. Notes tell what is left out.

    out: the folder for the list of what is broken, which is written if anything is; None without a list.
    """
    found = list_samples(given, captioned, filters_of(config))
    for text in found.notes:
        note(text)
    if found.broken and out is not None:
        note(f"what is broken is listed in {write_skipped(out, found.broken)}")
    return found.samples


def _hint() -> str:
    return f"images with captions are read from {', or '.join(kind.LAYOUT for kind in kinds())}"


def _pattern_in(given: str | Path) -> str:
    """The hint for a folder of shards or of Parquet tables; "" for what is none."""
    ends = [end for end in (".tar", ".parquet") if is_folder(Path(given)) and any(Path(given).glob(f"*{end}"))]
    return f"give '{Path(given)}/*{ends[0]}'" if ends else ""


def _refusal(given: str) -> FewstepError:
    """The error for a path, or an address, that no kind of source takes."""
    path = Path(given)
    if is_address(given):
        return FewstepError(f"{given} is no address of shards or of tables", _hint())
    if not is_file(path):
        return FewstepError(f"data not found: {path}", f"check the path; {_hint()}")
    suffix = path.suffix.lower()
    if suffix not in ARCHIVES:
        return FewstepError(
            f"{path} is none of what fewstep reads: folders, .jsonl, .csv and .parquet tables, .zip and .tar", _hint()
        )
    folder = shlex.quote(path.name.split(".")[0] or "data")
    unpack = {".7z": "7z x -o{1} {0}", ".rar": "unrar x {0} {1}/"}
    command = unpack.get(suffix, "tar -xf {0} -C {1}").format(shlex.quote(str(path)), folder)
    return FewstepError(
        f"{path} is an archive of a kind in which no image can be read alone: fewstep reads .tar and .zip",
        f"unpack it and give the folder: mkdir {folder} && {command}",
    )
