"""Events on a terminal: what takes long is said once, bars go away, notes are printed wherever stderr goes."""

import io
import sys
import threading
import time
from contextvars import Context

import pytest

from fewstep.cli import sink
from fewstep.cli.sink import Terminal
from fewstep.events import Note, Progress, doing, note, telling


class Screen(io.StringIO):
    """A stderr that a person looks at."""

    def isatty(self) -> bool:
        return True


def looked_at(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """stderr from now on; not a fixture, since pytest sets its own stderr anew before the test is called."""
    terminal = Screen()
    monkeypatch.setattr(sink, "PATIENCE_S", 0.02)
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def wait_for(text: str, terminal: Screen) -> None:
    deadline = time.monotonic() + 10
    while text not in terminal.getvalue() and time.monotonic() < deadline:
        time.sleep(0.005)


def test_what_takes_long_is_said_in_one_line(monkeypatch):
    terminal = looked_at(monkeypatch)
    with telling(Terminal()), doing("counting\nsheep"):
        wait_for("\n", terminal)
    assert terminal.getvalue().startswith("\rcounting\\nsheep ...  ")  # over what a progress bar left there
    assert terminal.getvalue().count("\n") == 1


def test_what_is_quick_is_not_said(monkeypatch):
    terminal = looked_at(monkeypatch)

    @doing("blinking")
    def blink(times: int) -> int:
        return times + 1

    with telling(Terminal()):
        assert [blink(1), blink(2)] == [2, 3]
    time.sleep(0.1)
    assert terminal.getvalue() == ""


def test_nothing_is_said_where_nobody_waits(monkeypatch, capsys):
    monkeypatch.setattr(sink, "PATIENCE_S", 0.0)
    before = threading.active_count()
    with telling(Terminal()), doing("counting"):
        assert threading.active_count() == before
        time.sleep(0.02)
    assert capsys.readouterr() == ("", "")


def test_counted_work_has_a_bar_that_goes_away(monkeypatch):
    terminal, shown = looked_at(monkeypatch), Terminal()
    for done in range(3):
        shown(Progress("drawing", done, 2, "step", f"loss {done}"))
    assert "drawing" in terminal.getvalue()
    assert shown._bar is None
    shown(Progress("drawing", 1, 3, "step"))
    shown.close()
    assert shown._bar is None


def test_notes_are_printed_wherever_stderr_goes(capsys):
    Terminal()(Note("a\x1b[2Jb"))
    assert capsys.readouterr().err == "note: a\\x1b[2Jb\n"


def test_where_there_is_no_sink_notes_are_logged(caplog):
    Context().run(note, "look here")
    assert [(record.name, record.getMessage()) for record in caplog.records] == [("fewstep", "look here")]


def test_a_sink_is_in_force_within_its_block_alone(caplog):
    events = []
    with telling(events.append):
        note("inside")
    assert events == [Note("inside")]
    assert not caplog.records
