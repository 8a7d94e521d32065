"""The files that a path, a pattern or an address names, here or on a server, and how their bytes are read.

A pattern has lists in braces, {000..012} or {a,b}, or the wildcards of a shell. An address, such as s3://bucket/000.tar,
is read through fsspec, which knows many kinds of server.
"""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import glob, has_magic
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from fewstep.errors import FewstepError

T = TypeVar("T")
MOST = 1_000_000  # files that a list in braces may stand for
BLOCK_BYTES = 2**20  # what is fetched from a server at once, at least
OPEN_FILES = 4  # on servers, that a thread keeps open
_LIST = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_LOCAL = threading.local()


def is_address(place: str) -> bool:
    """Whether this names a file on a server, and no path."""
    return "://" in place


def is_pattern(place: str) -> bool:
    """Whether this stands for several paths or addresses."""
    return has_magic(place) or _LIST.search(place) is not None


def named_files(given: str) -> list[str]:
    """The paths or addresses that a path, a pattern or an address names, in order.

    Raises FewstepError for a pattern that fits no file, and for a list that is too long.
    """
    places = []
    for place in spread(given):
        if not has_magic(place) or (not is_address(place) and Path(place).exists()):
            places.append(place)
        elif is_address(place):
            places += _matching(place)
        else:
            places += sorted(glob(place, recursive=True))  # noqa: PTH207 (as typed, absolute or not)
    if not places:
        raise FewstepError(f"no file fits {given}", "check the pattern; in a shell write it in quotes")
    return places


def spread(pattern: str) -> list[str]:
    """The pattern once for each value of its lists in braces, the last list running fastest."""
    patterns = [pattern]
    while (found := _LIST.search(patterns[0])) is not None:
        values = _values(found[1], pattern)
        if len(patterns) * len(values) > MOST:
            raise FewstepError(f"{pattern} names more than {MOST:,} files", "give a shorter list")
        parts = [each.split(found[0], 1) for each in patterns]
        patterns = [value.join(part) for part in parts for value in values]
    return patterns


def _values(text: str, pattern: str) -> list[str]:
    """The values of a list in braces: 000..012 counts with as many digits, a,b is two."""
    counted = _RANGE.fullmatch(text)
    if counted is None:
        return text.split(",")
    first, last = int(counted[1]), int(counted[2])
    if not 0 <= last - first < MOST:
        raise FewstepError(f"{pattern}: a list counts from {first} to {last}", f"count up, to {MOST:,} files at most")
    return [f"{number:0{len(counted[1])}}" for number in range(first, last + 1)]


def _matching(pattern: str) -> list[str]:
    """The addresses that fit a pattern, sorted."""

    def ask() -> list[str]:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(pattern)
        return [system.unstrip_protocol(found) for found in sorted(system.glob(path))]

    return asked(pattern, ask)


def missing(place: str) -> FewstepError:
    """The error for a file that is not there."""
    return FewstepError(f"data not found: {place}", "check the path or address")


def asked(place: str, ask: Callable[[], T]) -> T:
    """What a server, or the system, answers. Raises FewstepError naming the place for whatever goes wrong."""
    try:
        return ask()
    except FewstepError:
        raise
    except FileNotFoundError:
        raise missing(place) from None
    except ImportError as error:
        kind, package = place.partition("://")[0], re.search(r"[Ii]nstall (\S+)", str(error))
        raise FewstepError(
            f"{kind}:// needs a package that is not installed ({error})",
            f"pip install {package[1] if package else f'fsspec[{kind}]'}",
        ) from None
    except Exception as error:  # each kind of server has errors of its own
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
        raise FewstepError(f"cannot read {place} ({reason})", "check the address, and your access to it") from error


@contextmanager
def reading(place: str) -> Iterator[BinaryIO]:
    """The file at a path or an address, open to be read from its beginning."""
    if is_address(place):
        file = _file_on_server(place)
        asked(place, lambda: file.seek(0))
        yield file
    else:
        with open_file(place) as local:
            yield local


def open_file(place: str) -> BinaryIO:
    """The file at a path or an address, open and the caller's own."""
    if not is_address(place):
        return asked(place, lambda: Path(place).open("rb"))

    def ask() -> BinaryIO:
        from fsspec.core import url_to_fs  # most commands need no server

        system, path = url_to_fs(place)
        file: BinaryIO = system.open(path, "rb", block_size=BLOCK_BYTES, cache_type="readahead")
        return file

    return asked(place, ask)


def bytes_at(place: str, start: int, count: int, ahead: bool = False) -> bytes:
    """So many bytes of a file, from `start` on. Raises FewstepError if there are not as many.

    ahead: whether this thread will ask for what follows next, so that a server is asked for more at once.
    """

    def exactly() -> bytes:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(place)
        data: bytes = system.cat_file(path, start=start, end=start + count)
        return data

    def read(file: BinaryIO) -> bytes:
        file.seek(start)
        return file.read(count)

    if is_address(place) and not ahead:
        data = asked(place, exactly)
    else:
        with reading(place) as file:
            data = asked(place, lambda: read(file))
    if len(data) != count:
        raise FewstepError(f"{place} was cut, or changed while it was read", "get the file again")
    return data


def _file_on_server(place: str) -> BinaryIO:
    """The file at an address, which this thread keeps open: reading on from where it was costs no new request."""
    files: dict[str, BinaryIO] = _LOCAL.__dict__.setdefault("files", {})
    file = files.pop(place, None)
    if file is None:
        file = open_file(place)
        while len(files) >= OPEN_FILES:
            files.pop(next(iter(files))).close()
    files[place] = file  # the last that was used
    return file


def stamp_of(place: str) -> str | None:
    """What is another if the file is: its whole path or address, its size and time; None if these are not known."""
    if not is_address(place):
        try:
            found = Path(place).stat()
        except OSError:
            return None
        return f"{Path(place).absolute()} {found.st_size} {found.st_mtime_ns}"
    from fsspec.core import url_to_fs

    def ask() -> dict[str, Any]:
        system, path = url_to_fs(place)
        return dict(system.info(path))

    facts = asked(place, ask)
    known = [facts[name] for name in ("ETag", "etag", "LastModified", "mtime", "last_commit") if facts.get(name)]
    return f"{place} {facts.get('size')} {known[0]}" if known else None
