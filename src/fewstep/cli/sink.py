"""Shows events in a terminal: notes and progress on stderr. Results go to stdout, not through this file."""

import sys
import time
from threading import Timer
from typing import Any

from tqdm import tqdm

from fewstep.configs import option_name
from fewstep.errors import Line, printable
from fewstep.events import Event, Note, Progress

PATIENCE_S = 2.0  # work that takes longer is named
REPORT_S = 60.0  # time between lines about work when stderr is not a terminal
LINE = 79  # characters that overwrite the rest of a bar on its line


class Terminal:
    """The command line's sink. Without a terminal it prints notes, and for long work a line every REPORT_S."""

    def __init__(self) -> None:
        self._bars: dict[str, Any] = {}  # work that is counted -> its tqdm bar, outermost first
        self._begun: dict[str, tuple[float, float, int]] = {}  # work -> first time, last time, done at first
        self._timers: dict[str, Timer] = {}  # work that is not counted -> its timer

    def __call__(self, event: Event) -> None:
        """Show a note or progress. Previews are not shown."""
        if isinstance(event, Note):
            tqdm.write(f"note: {Line(event.text).spelled(option_name)}", file=sys.stderr)
        elif isinstance(event, Progress) and sys.stderr.isatty():
            (self._count if event.unit else self._wait)(event)
        elif isinstance(event, Progress) and event.unit:
            self._report(event)

    def close(self) -> None:
        """Remove bars and timers."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._close_bars()

    def _wait(self, work: Progress) -> None:
        """Print the name of the work, in one line, if it takes longer than PATIENCE_S."""
        if work.done < work.total:
            line = f"\r{printable(work.work) + ' ...':<{LINE}}\n"
            timer = Timer(PATIENCE_S, lambda: print(line, end="", file=sys.stderr, flush=True))
            timer.daemon = True
            self._timers[work.work] = timer
            timer.start()
        elif (begun := self._timers.pop(work.work, None)) is not None:
            begun.cancel()

    def _count(self, work: Progress) -> None:
        """Update the work's bar, which shows its rate and the time left. Work inside other work has a bar below."""
        bar = self._bars.get(work.work)
        if bar is None or bar.total != work.total or work.done < bar.n:
            self._close_bars(work.work)
            bar = self._bars[work.work] = tqdm(
                total=work.total,
                initial=work.done,
                desc=printable(work.work),
                unit=work.unit,
                file=sys.stderr,
                leave=False,
                dynamic_ncols=True,
            )
        bar.set_postfix_str(work.detail, refresh=False)
        bar.update(work.done - bar.n)
        if work.done >= work.total:
            self._close_bars(work.work)

    def _close_bars(self, first: str | None = None) -> None:
        """Remove the bar of the work `first` and the bars inside it; None = all bars."""
        names = list(self._bars)
        for name in names[names.index(first) if first in names else len(names) if first else 0 :][::-1]:
            self._bars.pop(name).close()

    def _report(self, work: Progress) -> None:
        """Print a line about the work if the last one is REPORT_S old, for readers of a log file."""
        now = time.monotonic()
        begun, last, first = self._begun.setdefault(work.work, (now, now, work.done))
        if work.done <= first or work.done >= work.total:
            self._begun[work.work] = (now, now, work.done)
        elif now - last >= REPORT_S:
            rate = (work.done - first) / (now - begun)
            left = tqdm.format_interval((work.total - work.done) / rate)
            parts = [f"{work.done}/{work.total}", f"{rate:.3g} {work.unit}/s", f"{left} left"] + [work.detail] * bool(
                work.detail
            )
            print(f"{printable(work.work)}: {', '.join(parts)}", file=sys.stderr, flush=True)
            self._begun[work.work] = (begun, now, first)
