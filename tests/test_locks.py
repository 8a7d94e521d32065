"""Locks: one holder at a time, and none once its process has ended, however it ended."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fewstep import locks
from fewstep.locks import take

ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).parents[1] / "src"), "PATH": "/usr/bin:/bin"}
HOLD = """
import sys, time
from pathlib import Path
from fewstep.locks import take
lock = take(Path(sys.argv[1]))
lock.write("held")
print("ready", flush=True)
time.sleep(60)
"""


def test_one_holder_at_a_time(tmp_path):
    path = tmp_path / "lock"
    first = take(path)
    assert first is not None
    assert first.sure
    assert take(path) is None
    first.write("mine, and long")
    first.write("mine")
    assert path.read_text() == "mine"
    first.release()
    second = take(path)
    assert second is not None
    second.remove()
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    path = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, path], env=ENVIRONMENT, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        assert take(path) is None
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    assert path.read_text() == "held"
    lock = take(path)
    assert lock is not None
    lock.remove()


def test_a_file_removed_by_its_last_holder_is_not_taken_for_the_lock(tmp_path, monkeypatch):
    """Between opening the file and locking it, another process removes it and a third makes it anew."""
    path, whole, calls = tmp_path / "lock", locks._lock, []

    def late(handle):
        calls.append(handle)
        if len(calls) == 1:
            path.unlink()
            path.touch()
        whole(handle)

    monkeypatch.setattr(locks, "_lock", late)
    lock = take(path)
    assert lock is not None
    assert os.path.samestat(os.fstat(lock.handle), path.stat())
    assert len(calls) == 2
    lock.remove()


def test_a_file_system_without_locks_gives_one_that_is_not_sure(tmp_path, monkeypatch):
    def unknown(handle):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks, "_lock", unknown)
    lock = take(tmp_path / "lock")
    assert lock is not None
    assert not lock.sure
    lock.remove()


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        take(tmp_path / "absent" / "lock")
