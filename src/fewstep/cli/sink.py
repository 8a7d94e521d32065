"""Events as a terminal shows them: notes and progress on stderr. Data goes to stdout and is not here."""

import sys
from threading import Timer
from typing import Any

from tqdm import tqdm

from fewstep.configs import option_name
from fewstep.errors import Line, printable
from fewstep.events import Event, Note, Progress

PATIENCE_S = 2.0  # for which a person waits without asking why
LINE = 79  # characters that cover what a bar left on its line


class Terminal:
    """The command line's sink. Where stderr is no terminal nobody waits, and only notes are shown."""

    def __init__(self) -> None:
        self._bar: Any = None  # tqdm
        self._shown: Progress | None = None  # what the bar shows
        self._timers: dict[str, Timer] = {}  # of work that is not counted

    def __call__(self, event: Event) -> None:
        """Show the event; pictures are none of it."""
        if isinstance(event, Note):
            tqdm.write(f"note: {Line(event.text).spelled(option_name)}", file=sys.stderr)
        elif isinstance(event, Progress) and sys.stderr.isatty():
            (self._count if event.unit else self._wait)(event)

    def close(self) -> None:
        """Take away what is shown."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._close_bar()

    def _wait(self, work: Progress) -> None:
        """Say what is being done, in one line, if it takes longer than PATIENCE_S."""
        if work.done < work.total:
            line = f"\r{printable(work.work) + ' ...':<{LINE}}\n"
            timer = Timer(PATIENCE_S, lambda: print(line, end="", file=sys.stderr, flush=True))
            timer.daemon = True
            self._timers[work.work] = timer
            timer.start()
        elif (begun := self._timers.pop(work.work, None)) is not None:
            begun.cancel()

    def _count(self, work: Progress) -> None:
        """Move the bar."""
        shown = self._shown
        if shown is None or (shown.work, shown.total) != (work.work, work.total):
            self._close_bar()
            self._bar = tqdm(
                total=work.total, desc=work.work, unit=work.unit, file=sys.stderr, leave=False, dynamic_ncols=True
            )
        self._bar.set_postfix_str(work.detail, refresh=False)
        self._bar.update(work.done - (self._shown.done if self._shown else 0))
        self._shown = work
        if work.done >= work.total:
            self._close_bar()

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = self._shown = None
