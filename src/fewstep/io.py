"""Files that appear whole or not at all, content hashes, and the user's cache folder."""

import errno
import hashlib
import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from fewstep.errors import FewstepError, UsageError, option
from fewstep.locks import Lock, take

SCRATCH = ".fewstep-"  # what the names of hidden folders begin with, in which files are written
LOCK, OLD = "lock", "old"  # in such a folder: what tells that its process lives; what is about to be replaced
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def cache_dir() -> Path:
    """The folder for caches and checkpoints: $FEWSTEP_CACHE, else ~/.cache/fewstep."""
    return Path(os.environ.get("FEWSTEP_CACHE") or Path.home() / ".cache" / "fewstep")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path of the same name; renamed onto `path` when the block ends well, removed otherwise.

    Raises FewstepError when the disk is full or the folder cannot be written.
    """
    with explaining(path), scratch(path.parent) as place:
        temporary = place / path.name
        temporary.touch()
        yield temporary
        temporary.replace(path)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `path` when the block ends well, and is removed otherwise."""
    with explaining(path), scratch(path.parent) as place:
        temporary = place / path.name
        temporary.mkdir()
        yield temporary
        if path.exists():
            (place / OLD).mkdir()
            path.rename(place / OLD / path.name)
        temporary.rename(path)


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A hidden folder inside `folder`, which is made, for what is being written; it is removed when the block ends.

    The one of a process that was killed is removed by the next that writes to `folder`: it is told by its lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clear_leftovers(folder.absolute())
    place, lock = _locked_place(folder)
    try:
        yield place
    finally:
        _remove(place, lock)


def _locked_place(folder: Path) -> tuple[Path, Lock]:
    """A new hidden folder and its lock; another process may take it for a leftover until it is locked."""
    while True:
        place = Path(tempfile.mkdtemp(dir=folder, prefix=SCRATCH))
        with suppress(FileNotFoundError):
            if (lock := take(place / LOCK)) is not None:
                return place, lock


@cache
def clear_leftovers(folder: Path) -> None:
    """Remove what killed processes were writing in this folder, once in the life of a process."""
    for place in folder.glob(f"{SCRATCH}*"):
        with suppress(OSError):  # gone meanwhile, or another user's
            lock = take(place / LOCK)
            if lock is not None and lock.sure:
                _remove(place, lock)
            elif lock is not None:
                lock.release()


def _remove(place: Path, lock: Lock) -> None:
    """Remove a hidden folder and its lock; what was moved there out of the way goes back if nothing took its place."""
    for old in (place / OLD).glob("*"):
        if not (place.parent / old.name).exists():
            old.rename(place.parent / old.name)
    shutil.rmtree(place, ignore_errors=True)
    lock.release()
    if sys.platform == "win32":  # which removes no open file
        shutil.rmtree(place, ignore_errors=True)


def is_file(path: Path) -> bool:
    """Whether there is a file. None is where the name is too long for one, of which `Path.is_file` makes an error."""
    return os.path.isfile(path)  # noqa: PTH113


def refuse_file(out: Path) -> None:
    """Raise UsageError if --out cannot be a folder, because it is a file or lies below one."""
    for path in (out, *out.parents):
        if is_file(path):
            place = "is a file" if path == out else f"is below {path}, which is a file"
            raise UsageError(f"{option('out')} {out} {place}", f"name a folder with {option('out')}")


def is_folder(path: Path) -> bool:
    """Whether there is a folder, likewise."""
    return os.path.isdir(path)  # noqa: PTH112


def append_line(path: Path, line: str) -> None:
    """Add a line to a log file."""
    with explaining(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects in the lines of a file that grows by `append_line`; none if there is no such file.

    A line that was not written to its end, by a process that was killed, is left out.
    """
    if not path.exists():
        return []
    found = []
    for line in path.read_bytes().splitlines():
        with suppress(ValueError):
            found.append(json.loads(line))
    return [value for value in found if isinstance(value, dict)]


@contextmanager
def explaining(path: Path) -> Iterator[None]:
    """Turn the system's write errors into FewstepErrors that name `path`."""
    try:
        yield
    except OSError as error:
        raise _explained(error, path) from error
    except Exception as error:
        if _says_full(error):
            raise _explained(OSError(errno.ENOSPC, "No space left on device"), path) from error
        raise


def _says_full(error: Exception) -> bool:
    """Whether this is a full disk, which safetensors reports as its own type with the system's text inside."""
    return "No space left" in str(error) or "File too large" in str(error)


def _explained(error: OSError, path: Path) -> FewstepError:
    elsewhere = place_setting(path)
    if error.errno in _FULL:
        return FewstepError(f"no space left to write {path}", f"free some space, or {elsewhere} on another disk")
    in_the_way = next((parent for parent in path.parents if is_file(parent)), None)
    reason = f"{in_the_way} is a file" if in_the_way else error.strerror or error
    return FewstepError(f"cannot write {path}: {reason}", f"{elsewhere} that you can write to")


def place_setting(path: Path) -> str:
    """How to have a file written elsewhere, in words that a place follows: by an option, or of a cache a variable."""
    if any(part.startswith("models--") for part in path.parts):  # as the hub names what it keeps
        return "set HF_HUB_CACHE to a folder"
    if path.absolute().is_relative_to(cache_dir().absolute()):
        return "set FEWSTEP_CACHE to a folder"
    return f"choose an {option('out')} folder"


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_new(path: Path, data: bytes) -> Path:
    """Where `data` is, whole: in `path`, or if that holds anything else, in the first free one of name-2, name-3, ...

    A file that holds the same bytes already is left as it is. Of processes that write at once none replaces another's.
    """
    with explaining(path), scratch(path.parent) as place:
        new = place / path.name
        new.write_bytes(data)
        for number in itertools.count(1):
            free = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
            if _moved(new, free) or _holds(free, data):
                break
    return free


def _moved(new: Path, path: Path) -> bool:
    """Whether nothing was at `path`; then the file `new` is there too, or instead."""
    try:
        path.hardlink_to(new)  # which never replaces
    except FileExistsError:
        return False
    except OSError:  # where there are no hard links
        if os.path.lexists(path):
            return False
        new.replace(path)
    return True


def _holds(path: Path, data: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path`, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path, what: str) -> Any:
    """The JSON value in `path`; `what` names the file's role in the error."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FewstepError(f"{what} not found: {path}", "check the path") from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, or too many digits
        refuse_stand_in(path)
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]
        raise FewstepError(
            f"{what} is not readable JSON: {path} ({reason})", "restore the file and try again"
        ) from error


def read_object(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in `path`; any other value is refused as `read_json` refuses what is no JSON."""
    value = read_json(path, what)
    if not isinstance(value, dict):
        raise FewstepError(f"{what} is no JSON object: {path} holds {brief(value)}", "restore the file and try again")
    return value


def brief(value: Any, length: int = 60) -> str:
    """A JSON value as it is spelled, cut to be read in a line."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= length else f"{text[: length - 3]}..."


STAND_INS = {  # what a file begins with -> what it is, and how to have what was meant
    b"version https://git-lfs": ("a Git LFS pointer", "run `git lfs pull` in its folder, or download the file itself"),
    b"<!doctype": ("a web page", "download the file itself: an address of the hub has /resolve/ in place of /blob/"),
    b"<html": ("a web page", "download the file itself: an address of the hub has /resolve/ in place of /blob/"),
    b"<?xml": ("a message of a server", "look into it for the reason, and download the file again"),
}  # fmt: skip


def first_bytes(path: Path, count: int = 256) -> bytes:
    """The beginning of a file."""
    with path.open("rb") as file:
        return file.read(count)


def refuse_stand_in(file: Path | bytes, name: str = "") -> None:
    """Raise FewstepError for a Git LFS pointer or a web page that lies where a file should be.

    file: its path, or its content; name: what the error calls a file of which the content is given.
    """
    try:
        start = file[:256] if isinstance(file, bytes) else first_bytes(file)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return  # the one who reads it says why
    start = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for mark, (what, hint) in STAND_INS.items():
        if start.startswith(mark):
            raise FewstepError(f"{name or file!s} is {what}, not the file itself", hint)


def sha256_bytes(*parts: bytes) -> str:
    """SHA-256 of the concatenation of `parts`, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of the file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
