"""What happens while work is done. Nothing below a skin prints or draws a bar: it tells events to the sink in force.

Event   Note      advice, or something that was left out
        Progress  how much of a piece of work is done
        Preview   what pictures look like so far

A skin puts its sink in force with `telling`, for a block and what the block calls. Where none is, notes go to Python's
logger `fewstep`.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from fewstep.errors import Line

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
LOGGER = logging.getLogger("fewstep")
NOISY = (  # loggers of libraries that warn, as they are imported, of what fewstep does not use
    "bitsandbytes.backends.cpu.ops",  # a kernel; diffusers imports it
    "transformers.utils.import_utils",  # torchvision
)


@dataclass(frozen=True)
class Note:
    """One line for the person."""

    text: str  # a Line, which a skin spells, where it comes from `note`


@dataclass(frozen=True)
class Progress:
    """How much of a piece of work is done."""

    work: str  # what is being done, such as drawing
    done: int
    total: int
    unit: str = ""  # what is counted, in the singular, such as step; "" is work that is not counted
    detail: str = ""  # how it goes, such as a loss


@dataclass(frozen=True)
class Preview:
    """What a batch of pictures looks like so far; they are decoded when they are asked for."""

    seeds: tuple[int, ...]  # one per picture
    step: int  # steps taken
    steps: int  # steps in all
    images: Callable[[], list["Image"]]  # one per seed; not after the next event


Event = Note | Progress | Preview
Sink = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The sink that does nothing."""


def log(event: Event) -> None:
    """The sink that logs notes, as warnings."""
    if isinstance(event, Note):
        LOGGER.warning(event.text)


_SINK: ContextVar[Sink] = ContextVar("sink", default=log)


@contextmanager
def telling(sink: Sink) -> Iterator[None]:
    """Let events of the block go to this sink, and only there."""
    token = _SINK.set(sink)
    try:
        yield
    finally:
        _SINK.reset(token)


def tell(event: Event) -> None:
    """Give the event to the sink in force."""
    _SINK.get()(event)


def note(text: str) -> None:
    """Tell one line for the person, with fields marked by `errors.option`."""
    tell(Note(Line(text)))


@contextmanager
def doing(work: str) -> Iterator[None]:
    """Tell that the block, or the decorated function, does this, and when it has ended."""
    tell(Progress(work, 0, 1))
    try:
        yield
    finally:
        tell(Progress(work, 1, 1))


def one(_: object) -> int:
    """What an item counts for."""
    return 1


def counted(items: Iterable[T], work: str, unit: str, total: int, count: Callable[[T], int] = one) -> Iterator[T]:
    """The items; each that is done with is told. count: how many units an item is."""
    done = 0
    tell(Progress(work, done, total, unit))
    for item in items:
        yield item
        done += count(item)
        tell(Progress(work, done, total, unit))


def in_minutes(seconds: float) -> str:
    """A time for people: 40 seconds, 12 minutes, 3.5 hours."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def hush() -> None:
    """Let no warning of no use come from libraries as they are imported: it runs before they are.

    For programs: a library changes no logger.
    """
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
