"""Sources of captioned images: one file for each kind, found by being in this folder.

A file that is a source has three things: LAYOUT, which says in words what it reads; `takes(given)`, which says whether
it reads a path or name; and `open_source(given, captioned)`, which gives back a Source.
"""

import shlex
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import NamedTuple, Protocol, cast

from fewstep.data.found import ARCHIVES
from fewstep.data.sources.source import FileSample, Sample, SampleList, Source
from fewstep.data.tables import TABLES
from fewstep.errors import FewstepError, option
from fewstep.events import doing
from fewstep.io import is_file

__all__ = ["FileSample", "Listing", "Sample", "SampleList", "Source", "list_samples", "open_source"]


class Kind(Protocol):
    """What a file of this folder has if it is a source."""

    LAYOUT: str

    def takes(self, given: str) -> bool:
        """Whether this kind of source reads what was given."""

    def open_source(self, given: str, captioned: bool) -> Source:
        """The source that was given. Unless captioned, its samples may be without captions."""


class Listing(NamedTuple):
    """All samples of a source."""

    samples: list[Sample]  # at least one
    notes: tuple[str, ...]  # a line about what of the source is left out, if anything is


def kinds() -> list[Kind]:
    """The kinds of source that there are, in the order of their files' names."""
    files = [import_module(f"{__name__}.{file.name}") for file in iter_modules(__path__)]
    return [cast(Kind, file) for file in files if hasattr(file, "takes")]


def open_source(given: str | Path, captioned: bool = True) -> Source:
    """The captioned images at a path, or of a name, of the first kind of source that takes it.

    captioned: False if captions are not needed; then images without one are read too.
    Raises FewstepError for what no kind of source takes, and for what is broken.
    """
    for kind in kinds():
        if kind.takes(str(given)):
            return kind.open_source(str(given), captioned)
    raise _refusal(Path(given))


@doing("listing the images")
def list_samples(given: str | Path, captioned: bool = True) -> Listing:
    """All samples of the source at a path, or of a name, in its own order, and what is left out.

    captioned: as of `open_source`. Raises FewstepError if there are none, or where a caption is needed and not there.
    """
    source = open_source(given, captioned)
    samples, left_out = list(source), source.left_out
    if not samples:
        raise FewstepError(f"no images in {given}{f' (left out: {left_out})' if left_out else ''}", _hint())
    for sample in samples:
        if captioned and not sample.captions:
            raise FewstepError(f"no caption for {sample.key}", "give every image a caption")
    return Listing(samples, (f"left out of {given}: {left_out}",) if left_out else ())


def _hint() -> str:
    return f"{option('data')} takes images with captions: {', or '.join(kind.LAYOUT for kind in kinds())}"


def _refusal(path: Path) -> FewstepError:
    """The error for a path that no kind of source takes."""
    if not is_file(path):
        return FewstepError(f"data not found: {path}", _hint())
    suffix = path.suffix.lower()
    if suffix not in ARCHIVES:
        return FewstepError(
            f"{path} is not a table of images: fewstep reads folders, and {' and '.join(TABLES)} tables", _hint()
        )
    folder = shlex.quote(path.name.split(".")[0] or "data")
    unpack = {".zip": "unzip -d {1} {0}", ".7z": "7z x -o{1} {0}", ".rar": "unrar x {0} {1}/"}
    command = unpack.get(suffix, "tar -xf {0} -C {1}").format(shlex.quote(str(path)), folder)
    return FewstepError(
        f"{path} is an archive: fewstep reads folders and tables",
        f"unpack it and give the folder: mkdir {folder} && {command}",
    )
