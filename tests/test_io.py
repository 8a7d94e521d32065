"""Files appear whole or not at all, and leave nothing beside them."""

import errno
import hashlib
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fewstep.errors import FewstepError
from fewstep.io import (
    append_line,
    atomic_folder,
    atomic_path,
    brief,
    cache_dir,
    clear_leftovers,
    read_json,
    read_object,
    refuse_stand_in,
    sha256_bytes,
    sha256_file,
    write_bytes,
    write_json,
    write_new,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


FULL = OSError(errno.ENOSPC, "No space left on device")


def write_half(path: Path, stop: BaseException) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise stop


def write_half_folder(path: Path, stop: BaseException) -> None:
    with atomic_folder(path) as temporary:
        (temporary / "new").write_text("half")
        raise stop


def test_a_path_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with atomic_path(path) as temporary:
        assert temporary.parent.parent == path.parent  # on the same disk
        assert temporary.name == path.name
        temporary.write_text("all")
        assert not path.exists()
    assert path.read_text() == "all"
    assert names(path.parent) == ["file.txt"]
    (plain := tmp_path / "plain").write_text("")
    assert path.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("stop", [ValueError("no"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_a_path_keeps_its_old_content_when_the_block_fails(tmp_path, stop):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(type(stop)):
        write_half(path, stop)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    path = tmp_path / "file.txt"
    with pytest.raises(FewstepError, match=rf"^no space left to write {re.escape(str(path))}\n\nhint: free some space"):
        write_half(path, FULL)
    assert names(tmp_path) == []


@pytest.mark.parametrize("atomic", [atomic_path, atomic_folder])
@pytest.mark.parametrize("text", ["No space left on device (os error 28)", "File too large (os error 27)"])
def test_a_full_disk_as_safetensors_tells_it(tmp_path, atomic, text):
    from safetensors import SafetensorError

    with pytest.raises(FewstepError, match="no space left to write"), atomic(tmp_path / "x"):
        raise SafetensorError(f"Error while serializing: I/O error: {text}")
    assert names(tmp_path) == []


def test_other_errors_pass_unchanged(tmp_path):
    with pytest.raises(RuntimeError, match=r"^something else$"), atomic_path(tmp_path / "x"):
        raise RuntimeError("something else")


def test_a_parent_that_is_a_file_is_said(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(FewstepError, match=r"^cannot write .*x\.txt: .*out is a file\n\nhint: choose an out folder"):
        write_bytes(tmp_path / "out" / "x.txt", b"")
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("place", "hint"),
    [
        ("cache/encoded/x", "set FEWSTEP_CACHE to a folder"),
        ("hub/models--owner--name/refs/main", "set HF_HUB_CACHE to a folder"),
        ("out/x", "choose an out folder"),
    ],
)
def test_the_hint_names_what_decides_the_place(monkeypatch, tmp_path, place, hint):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    with pytest.raises(FewstepError) as caught:
        write_half(tmp_path / place, FULL)
    assert caught.value.hint == f"free some space, or {hint} on another disk"
    with pytest.raises(FewstepError) as caught:
        write_half(tmp_path / place, OSError(errno.EROFS, "Read-only file system"))
    assert caught.value.hint == f"{hint} that you can write to"


def test_a_folder_takes_the_old_ones_place_whole(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").write_text("old")
    with atomic_folder(folder) as temporary:
        (temporary / "new").write_text("new")
        assert names(folder) == ["old"]
    assert names(folder) == ["new"]
    assert names(tmp_path) == ["model"]
    (plain := tmp_path / "plain").mkdir()
    assert folder.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("stop", [ValueError("no"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_a_folder_stays_as_it_was_when_the_block_fails(tmp_path, stop):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").write_text("old")
    with pytest.raises(type(stop)):
        write_half_folder(folder, stop)
    assert names(folder) == ["old"]
    assert names(tmp_path) == ["model"]


def test_a_folder_on_a_full_disk(tmp_path):
    with pytest.raises(FewstepError, match=r"^no space left to write .*model\n"):
        write_half_folder(tmp_path / "model", FULL)
    assert names(tmp_path) == []


def killed(folder: Path, code: str) -> None:
    """Run the lines in a process that kills itself in them, with `path` in `folder`."""
    begin = "import os, sys\nfrom pathlib import Path\nfrom fewstep import io\npath = Path(sys.argv[1]) / 'model'\n"
    command = [sys.executable, "-c", begin + code, str(folder)]
    environment = {"PYTHONPATH": str(Path(__file__).parents[1] / "src"), "PATH": "/usr/bin:/bin"}
    assert subprocess.run(command, env=environment, check=False).returncode == -9


KILL = "os.kill(os.getpid(), 9)"
KILLED = {
    "file": f"with io.atomic_path(path) as new:\n    new.write_text('half')\n    {KILL}",
    "folder": f"with io.atomic_folder(path) as new:\n    (new / 'x').write_text('half')\n    {KILL}",
    "before its lock": f"io.take = lambda path: {KILL}\nwith io.atomic_path(path): pass",
}


@pytest.mark.parametrize("code", KILLED.values(), ids=KILLED)
def test_what_a_killed_process_was_writing_is_removed_by_the_next(tmp_path, code):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")
    killed(tmp_path, code)
    assert len(names(tmp_path)) == 2
    with atomic_path(tmp_path / "another"):
        assert len(names(tmp_path)) == 2  # its own
    assert names(tmp_path) == ["another", "model"]
    assert names(tmp_path / "model") == ["old"]


def test_a_folder_that_was_moved_away_comes_back_if_the_new_one_never_took_its_place(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")
    second = "whole, calls = Path.rename, []\ndef rename(a, b):\n    calls.append(a)\n"
    second += f"    {KILL} if len(calls) == 2 else whole(a, b)\nPath.rename = rename\n"
    killed(tmp_path, second + "with io.atomic_folder(path) as new: pass")
    assert not (tmp_path / "model").exists()
    clear_leftovers(tmp_path)
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["old"]


def test_what_another_process_is_writing_stays(tmp_path):
    clear = "import sys; from pathlib import Path; from fewstep.io import clear_leftovers as c; c(Path(sys.argv[1]))"
    environment = {"PYTHONPATH": str(Path(__file__).parents[1] / "src"), "PATH": "/usr/bin:/bin"}
    with atomic_path(tmp_path / "file") as temporary:
        temporary.write_text("whole")
        subprocess.run([sys.executable, "-c", clear, str(tmp_path)], env=environment, check=True)
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "whole"


def test_hidden_files_of_others_stay(tmp_path):
    (tmp_path / ".model.old").mkdir()
    (tmp_path / ".fewsteps").touch()
    with atomic_folder(tmp_path / "model"):
        pass
    assert names(tmp_path) == [".fewsteps", ".model.old", "model"]


def test_the_disk_really_is_full(tmp_path):
    """RLIMIT_FSIZE makes the kernel refuse the bytes, in Python's writes and in safetensors' own."""
    pytest.importorskip("resource", reason="POSIX only")
    code = """
import resource, sys, numpy
from pathlib import Path
from safetensors.numpy import save_file
from fewstep.io import atomic_path, write_bytes
from fewstep.errors import FewstepError
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for name in ("bytes", "tensors"):
    try:
        if name == "bytes":
            write_bytes(Path(name), b"x" * 20_000)
        else:
            with atomic_path(Path(name)) as temporary:
                save_file({"x": numpy.zeros(20_000)}, temporary)
    except FewstepError as error:
        print(error.message)
"""
    environment = {"PYTHONPATH": str(Path(__file__).parents[1] / "src"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    assert done.stdout.splitlines() == ["no space left to write bytes", "no space left to write tensors"]
    assert names(tmp_path) == []


def test_json_round_trip(tmp_path):
    value = {"name": "Zoë", "steps": [1, 2], "none": None}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json", "x") == value
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert "Zoë" in text
    assert text.endswith("}\n")


UNREADABLE = {
    "cut": (b"{", r"\(Expecting property name"),
    "not UTF-8": (b"\xff\xfe", r"\(.* can't decode"),
    "empty": (b"", r"\(Expecting value"),
    "nested": (b"[" * 100_000, r"\(it is nested too deeply\)\n"),
    "digits": (b"9" * 6000, r"\(Exceeds the limit .* 6000 digits\)\n"),
}


@pytest.mark.parametrize(("content", "reason"), UNREADABLE.values(), ids=UNREADABLE)
def test_json_that_is_none(tmp_path, content, reason):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(FewstepError, match=rf"^recipe is not readable JSON: .*a\.json {reason}"):
        read_json(tmp_path / "a.json", "recipe")


@pytest.mark.parametrize("content", ["[]", "null", '"text"', "3", "NaN"])
def test_json_that_is_no_object(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(FewstepError, match=r"^recipe is no JSON object: .*a\.json holds ") as refusal:
        read_object(tmp_path / "a.json", "recipe")
    assert refusal.value.message.endswith(content)


def test_a_long_value_is_cut():
    assert brief(["x" * 100]) == '["' + "x" * 55 + "..."
    assert brief({"a": None}) == '{"a": null}'


STAND_INS = {
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer", "git lfs pull"),
    "page": (b"\xef\xbb\xbf\n <!DOCTYPE html><html>", "web page", "/resolve/"),
    "old page": (b"<HTML><head>", "web page", "/resolve/"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "what", "hint"), STAND_INS.values(), ids=STAND_INS)
def test_what_stands_in_for_a_file_is_named(tmp_path, content, what, hint):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(FewstepError, match=rf"/a\.json is a {what}, not the file itself") as refusal:
        refuse_stand_in(tmp_path / "a.json")
    assert hint in refusal.value.hint
    with pytest.raises(FewstepError, match=what):
        read_json(tmp_path / "a.json", "recipe")


def test_files_that_stand_for_themselves(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    refuse_stand_in(tmp_path / "a.safetensors")
    refuse_stand_in(tmp_path / "absent")
    refuse_stand_in(tmp_path)


def test_json_that_is_missing(tmp_path):
    with pytest.raises(FewstepError, match=r"^the list not found: .*x\.json\n\nhint: check the path$"):
        read_json(tmp_path / "x.json", "the list")


def test_lines_are_appended(tmp_path):
    append_line(tmp_path / "log", "one")
    append_line(tmp_path / "log", "two")
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
    with pytest.raises(FewstepError, match=r"cannot write .*absent/log"):
        append_line(tmp_path / "absent" / "log", "one")


def test_hashes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    expected = hashlib.sha256(b"abc").hexdigest()
    assert sha256_file(tmp_path / "x") == expected
    assert sha256_bytes(b"a", b"bc") == expected


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    for unset in ("", None):
        monkeypatch.setenv("FEWSTEP_CACHE", unset) if unset is not None else monkeypatch.delenv("FEWSTEP_CACHE")
        assert cache_dir() == Path.home() / ".cache" / "fewstep"


def test_errors_are_a_line_and_a_hint():
    assert str(FewstepError("it broke", "mend it")) == "it broke\n\nhint: mend it"
    assert json.dumps(FewstepError("it broke", "mend it").args) == '["it broke"]'


def without_links(self, target):
    raise PermissionError(errno.EPERM, "Operation not permitted")  # as on exFAT


@pytest.mark.parametrize("links", [True, False])
def test_what_is_there_is_never_written_over(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", without_links)
    path = tmp_path / "new" / "a.b.png"
    assert write_new(path, b"one") == path
    assert write_new(path, b"two") == path.with_name("a.b-2.png")
    path.with_name("a.b-3.png").mkdir()
    path.with_name("a.b-4.png").symlink_to("nowhere")
    assert write_new(path, b"six") == path.with_name("a.b-5.png")
    assert write_new(path, b"two") == path.with_name("a.b-2.png")  # is there already
    assert [path.with_name(f"a.b{n}.png").read_bytes() for n in ("", "-2", "-5")] == [b"one", b"two", b"six"]
    assert names(path.parent) == ["a.b-2.png", "a.b-3.png", "a.b-4.png", "a.b-5.png", "a.b.png"]


def test_those_who_write_at_once_replace_none_of_each_other(tmp_path):
    texts = [f"{i}".encode() for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda text: write_new(tmp_path / "a.png", text), texts))
    assert len(set(paths)) == 40
    assert [path.read_bytes() for path in paths] == texts
    assert len(names(tmp_path)) == 40
