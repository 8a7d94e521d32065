"""Events on a terminal: what takes long is said once, bars go away, notes are printed wherever stderr goes."""

import io
import re
import sys
import threading
import time
from contextvars import Context

import pytest

from fewstep.cli import sink
from fewstep.cli.sink import Terminal
from fewstep.errors import option
from fewstep.events import Note, Progress, counted, doing, note, telling


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
    assert shown._bars == {}
    shown(Progress("drawing", 1, 3, "step"))
    shown.close()
    assert shown._bars == {}


def test_a_bar_shows_the_rate_the_time_left_and_how_it_goes(monkeypatch):
    terminal, shown = looked_at(monkeypatch), Terminal()
    shown(Progress("training", 500, 1000, "step"))
    bar = shown._bars["training"]
    bar.start_t -= 10
    shown(Progress("training", 600, 1000, "step", "loss=0.5"))
    bar.refresh()
    assert re.search(
        r"600/1000 \[00:1\d<00:\d\d, +[\d.]+step/s, loss=0.5\]", terminal.getvalue()
    )  # of the 100 done here
    shown.close()


def test_work_within_work_has_a_bar_of_its_own(monkeypatch):
    looked_at(monkeypatch)
    shown = Terminal()
    with telling(shown):
        for row in counted("ab", "measuring", "row", 2):
            outer = shown._bars["measuring"]
            for batch in counted("abc", "features", "batch", 3):
                assert list(shown._bars) == ["measuring", "features"]
                if row == batch == "b":
                    break  # left in the middle, it goes with the outer one
    assert outer.n == 2
    assert shown._bars == {}


def test_what_takes_minutes_is_reported_where_stderr_is_a_file(monkeypatch, capsys):
    clock = iter([0.0, 30.0, 60.0, 90.0, 121.0, 400.0])
    monkeypatch.setattr(sink.time, "monotonic", lambda: next(clock))
    shown = Terminal()
    for done in range(100, 151, 10):
        shown(Progress("training", done, 150, "step", f"loss={done}"))
    assert capsys.readouterr().err == (
        "training: 120/150, 0.333 step/s, 01:30 left, loss=120\ntraining: 140/150, 0.331 step/s, 00:30 left, loss=140\n"
    )


def test_counted_items_count_for_what_they_say():
    events = []
    with telling(events.append):
        assert list(counted(["ab", "c"], "reading", "letter", 3, len)) == ["ab", "c"]
    assert [event.done for event in events] == [0, 2, 3]


def test_a_note_spells_fields_as_the_command_line_does(capsys, caplog):
    text = f"{option('nag_scale')} 5 makes it work"
    with telling(Terminal()):
        note(text)
    assert capsys.readouterr().err == "note: --nag-scale 5 makes it work\n"
    Context().run(note, text)
    assert [record.getMessage() for record in caplog.records] == ["nag_scale 5 makes it work"]


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
