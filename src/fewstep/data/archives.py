"""What is in an archive, .tar or .zip. Files are read where they lie: nothing is unpacked, and no link is followed."""

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from functools import cached_property, lru_cache
from typing import NamedTuple, Protocol

from fewstep.data.places import asked, bytes_at, reading, stamp_of
from fewstep.errors import FewstepError

LARGEST_BYTES = 2**28  # of a file in an archive, unpacked: what is larger is no image, or a bomb
BLOCK = tarfile.BLOCKSIZE


class Member(NamedTuple):
    """A file in an archive."""

    name: str  # its path there
    place: int  # where the archive finds it
    size_bytes: int


class Archive(Protocol):
    """A file that holds files."""

    @property
    def name(self) -> str:
        """Its path or address."""

    @property
    def stamp(self) -> str | None:
        """As of `places.stamp_of`."""

    def members(self) -> Iterator[Member]:
        """Its files, in its own order. Raises FewstepError, after those that are whole, if it is damaged."""

    def read(self, member: Member, ahead: bool) -> bytes:
        """The content of one of its files. Raises FewstepError if it cannot be read. ahead: as of `bytes_at`."""


def whole(archive: Archive, member: Member, ahead: bool = False) -> bytes:
    """The content of a file in an archive. Raises FewstepError for one that is damaged, or too large.

    ahead: as of `places.bytes_at`.
    """
    if member.size_bytes > LARGEST_BYTES:
        raise FewstepError(
            f"{archive.name}/{member.name} has {member.size_bytes / 2**20:,.0f} MiB",
            f"a file in an archive may have {LARGEST_BYTES / 2**20:.0f} MiB",
        )
    return archive.read(member, ahead)


class Tar:
    """A .tar that is not compressed, here or on a server; a shard of WebDataset is one."""

    def __init__(self, name: str) -> None:
        self.name = name

    @cached_property
    def stamp(self) -> str | None:
        """As Archive's."""
        return stamp_of(self.name)

    def members(self) -> Iterator[Member]:
        """As Archive's. `place` is the byte at which the content begins."""
        with reading(self.name) as file:
            tar = asked(self.name, lambda: self._opened(file))
            while (info := asked(self.name, lambda: self._next(tar))) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # which would hold every file's header
                if info.isreg() and not info.issparse():
                    yield Member(info.name, info.offset_data, info.size)

            def end() -> bytes:
                file.seek(tar.offset)
                return file.read(BLOCK)

            if asked(self.name, end) != bytes(BLOCK):  # tarfile takes a damaged header for the end
                raise self._cut()

    def _opened(self, file: object) -> tarfile.TarFile:
        try:
            return tarfile.open(fileobj=file, mode="r:")  # type: ignore[call-overload,no-any-return]
        except tarfile.TarError as error:
            raise FewstepError(f"{self.name} is no .tar ({error})", "get the file again; unpack a .tar.gz") from None

    def _next(self, tar: tarfile.TarFile) -> tarfile.TarInfo | None:
        try:
            return tar.next()
        except (tarfile.TarError, ValueError, EOFError):
            raise self._cut() from None

    def _cut(self) -> FewstepError:
        return FewstepError(f"{self.name} was cut, or is damaged", "get the file again")

    def read(self, member: Member, ahead: bool) -> bytes:
        """As Archive's."""
        return bytes_at(self.name, member.place, member.size_bytes, ahead)


class Zip:
    """A .zip."""

    def __init__(self, name: str) -> None:
        self.name = name

    @cached_property
    def stamp(self) -> str | None:
        """As Archive's."""
        return stamp_of(self.name)

    def members(self) -> Iterator[Member]:
        """As Archive's. `place` is the number of the file in the archive's list."""
        for number, info in enumerate(_zip(self.name, self.stamp).infolist()):
            if not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16):
                yield Member(info.filename, number, info.file_size)

    def read(self, member: Member, ahead: bool) -> bytes:
        """As Archive's."""
        file = _zip(self.name, self.stamp)
        try:
            with file.open(file.infolist()[member.place]) as opened:
                return opened.read(LARGEST_BYTES)
        except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
            raise FewstepError(  # RuntimeError: it is encrypted
                f"{self.name}/{member.name} cannot be read ({error})", "pack the archive again, without a password"
            ) from None


@lru_cache(maxsize=8)
def _zip(path: str, stamp: str | None) -> zipfile.ZipFile:
    """The open archive, with its list of files. stamp: of the file as it is now, so that another is opened anew."""
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise FewstepError(f"{path} is no whole .zip ({error})", "get the file again") from None
