"""What takes long is said on a terminal, once; what does not is not; where there is no terminal nothing is."""

import io
import sys
import threading
import time

import pytest

from fewstep import events
from fewstep.cli import runner
from fewstep.configs import DoctorConfig
from fewstep.events import doing


class Terminal(io.StringIO):
    """A stderr that a person looks at."""

    def isatty(self) -> bool:
        return True


def looked_at(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """stderr from now on; not a fixture, since pytest sets its own stderr anew before the test is called."""
    terminal = Terminal()
    monkeypatch.setattr(events, "PATIENCE_S", 0.02)
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def wait_for(text: str, terminal: Terminal) -> None:
    deadline = time.monotonic() + 10
    while text not in terminal.getvalue() and time.monotonic() < deadline:
        time.sleep(0.005)


def test_what_takes_long_is_said_in_one_line(monkeypatch):
    terminal = looked_at(monkeypatch)
    with doing("counting\nsheep"):
        wait_for("\n", terminal)
    assert terminal.getvalue().startswith("\rcounting\\nsheep ...  ")  # over what a progress bar left there
    assert terminal.getvalue().count("\n") == 1


def test_what_is_quick_is_not_said(monkeypatch):
    terminal = looked_at(monkeypatch)

    @doing("blinking")
    def blink(times: int) -> int:
        return times + 1

    assert [blink(1), blink(2)] == [2, 3]
    time.sleep(0.1)
    assert terminal.getvalue() == ""


def test_nothing_is_said_where_nobody_waits(monkeypatch, capsys):
    monkeypatch.setattr(events, "PATIENCE_S", 0.0)
    before = threading.active_count()
    with doing("counting"):
        assert threading.active_count() == before
        time.sleep(0.02)
    assert capsys.readouterr() == ("", "")


def test_the_first_import_is_said(monkeypatch, tmp_path):
    terminal = looked_at(monkeypatch)
    code = "import time\ntime.sleep(0.2)\ndef run(config): print('done')\n"
    (tmp_path / "slow_to_import.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    runner("slow_to_import")(DoctorConfig())
    assert terminal.getvalue().startswith("\rloading PyTorch and diffusers ...")
