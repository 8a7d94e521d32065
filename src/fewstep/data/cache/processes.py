"""The processes of a run, which torchrun and accelerate launch tell by environment variables."""

import os
import time
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import NamedTuple, TypeVar

from fewstep.errors import FewstepError
from fewstep.io import explaining

T = TypeVar("T")
PATIENCE_S = 600.0  # for which a process waits for the others to begin
POLL_S = 0.5


class Process(NamedTuple):
    """One process of a run, which does its share of the work."""

    rank: int
    of: int

    def has(self, number: int, block: int = 1) -> bool:
        """Whether the item of this number is this process's. block: how many that follow each other stay together."""
        return number // block % self.of == self.rank


def this_process() -> Process:
    """The process that asks."""
    return Process(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def mark_of(place: Path, rank: int, of: int) -> Path:
    """The file that tells that a process has begun."""
    return place.with_name(f"{place.stem}.{rank}-of-{of}.begun")


def meet(place: Path) -> None:
    """Wait until all processes of the run have begun. place: a path that the marks are named after.

    Raises FewstepError if they do not come, as when the machines do not share the folder.
    """
    rank, of = this_process()
    with explaining(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        own = mark_of(place, rank, of)
        own.touch()
        now, until = own.stat().st_mtime, time.monotonic() + PATIENCE_S
    while any(not _since(mark_of(place, other, of), now - PATIENCE_S) for other in range(of)):
        if time.monotonic() > until:
            encode = "encode on one of them with fewstep data encode, and copy the result to the others"
            raise absent(place.parent, f", or {encode}")
        time.sleep(POLL_S)


def awaited(look: Callable[[], T | None], folder: Path, patience_s: float = inf) -> T:
    """What `look` finds, once all processes of the run have written their share of it to a folder.

    patience_s: for which no file may be added to the folder. Raises FewstepError if none is added for so long, and for
    one process alone if it does not find what it wrote.
    """
    files, until = -1, inf
    while (found := look()) is None:
        if this_process().of == 1:
            raise FewstepError(f"files of the cache {folder} went away while it was written", "run it again")
        there = len(list(folder.glob("*.safetensors")))
        if there != files:
            files, until = there, time.monotonic() + patience_s
        elif time.monotonic() > until:
            raise absent(folder)
        time.sleep(POLL_S)
    return found


def absent(folder: Path, instead: str = "") -> FewstepError:
    """The error for processes of the run that do not write to a folder. instead: what else helps."""
    return FewstepError(
        f"not all of the {this_process().of} processes write to {folder}",
        f"set FEWSTEP_CACHE to a folder that all machines share{instead}",
    )


def _since(path: Path, begun: float) -> bool:
    """Whether a file was written after this time."""
    try:
        return path.stat().st_mtime >= begun
    except OSError:
        return False
