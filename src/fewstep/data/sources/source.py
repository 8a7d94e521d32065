"""What a source of captioned images is: the protocols Sample and Source, samples that are files, a list of samples."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol

from fewstep.errors import FewstepError
from fewstep.images import file_bytes


class Sample(Protocol):
    """A captioned image that is not read yet."""

    @property
    def key(self) -> str:
        """The name of the image in errors, such as its path; no two samples of a source have the same."""

    @property
    def captions(self) -> Sequence[str]:
        """What the image shows, in one or more wordings; it may be empty only where captions were not asked for."""

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width in pixels of the image as it is seen; None if the image must be read to tell."""

    @property
    def stamp(self) -> str | None:
        """What is another if the image is, such as its file's path, size and time; None if only its content tells."""

    @property
    def columns(self) -> Mapping[str, object]:
        """What else the source says about the image, by name: of the columns that were asked for, those it has."""

    def open(self) -> bytes:
        """The content of the image's file. Raises FewstepError if it cannot be read."""


class Broken(NamedTuple):
    """What stands in a source where a sample would, but cannot be one."""

    key: str  # as Sample's
    error: FewstepError


Item = Sample | Broken


class Source(Protocol):
    """Captioned images, from anywhere."""

    @property
    def left_out(self) -> str:
        """What of the source is no sample, such as "2 .gif files"; "" if nothing is, as far as it has been read."""

    def __iter__(self) -> Iterator[Item]:
        """The samples and what is broken, in the same order each time."""

    def part(self, rank: int, of: int) -> "Source":
        """The share of process `rank`, 0...of - 1. The shares of all processes together are the source."""


class FileSample(NamedTuple):
    """A sample whose image is a file."""

    path: Path
    captions: tuple[str, ...]
    size: tuple[int, int] | None = None  # as Sample's
    columns: Mapping[str, object] = MappingProxyType({})  # as Sample's

    @property
    def key(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def stamp(self) -> str | None:
        """The whole path, the size and the time of the file; None if it cannot be looked at."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return f"{self.path.absolute()} {found.st_size} {found.st_mtime_ns}"

    def open(self) -> bytes:
        """The file's content. Raises FewstepError naming the file if it cannot be read."""
        return file_bytes(self.path)


@dataclass(frozen=True)
class SampleList:
    """The source of samples that are all known before the first image is read."""

    samples: Sequence[Item]
    left_out: str = ""

    def __iter__(self) -> Iterator[Item]:
        return iter(self.samples)

    def part(self, rank: int, of: int) -> "SampleList":
        """Every `of`-th sample, from number `rank` on."""
        return SampleList(self.samples[rank::of], self.left_out)
