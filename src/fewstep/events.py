"""What is said to a person beside results: notes, and what takes so long, on stderr."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

from fewstep.errors import printable

PATIENCE_S = 2.0  # for which a person waits without asking why
LINE = 79  # characters that cover what a progress bar left on its line


def note(text: str) -> None:
    """Say it in one line, whatever stands in it."""
    print(f"note: {printable(text)}", file=sys.stderr)


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Say what the block, or the decorated function, does, if it takes longer than PATIENCE_S: one line on a terminal.

    Where stderr is no terminal nobody waits, and nothing is said.
    """
    if not sys.stderr.isatty():
        yield
        return
    line = f"\r{printable(what) + ' ...':<{LINE}}\n"
    timer = Timer(PATIENCE_S, lambda: print(line, end="", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def program() -> str:
    """How the program is called here: by its name if the shell finds it, else by its path."""
    path = Path(sys.argv[0])
    return "fewstep" if shutil.which("fewstep") or path.stem != "fewstep" else str(path)
