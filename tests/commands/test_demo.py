"""The demo: played whole on the embedded model, and careful with folders that are not its own."""

import re

import pytest
from PIL import Image

from fewstep.commands import demo
from fewstep.configs import DemoConfig
from fewstep.errors import FewstepError


def test_a_folder_that_is_no_demos_is_left_alone(tmp_path, fewstep):
    (tmp_path / "mine.txt").write_text("keep")
    done = fewstep("demo", out=tmp_path)
    assert done.code == 2
    assert re.match(r"--out .* holds something else than a demo", done.error)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_empty_folder_will_do_and_a_file_is_called_one(tmp_path, fewstep, monkeypatch):
    def opened(*_, **__):
        raise FewstepError("the model is opened", "it goes on")

    monkeypatch.setattr(demo, "Session", opened)
    (tmp_path / "empty").mkdir()
    assert fewstep("demo", out=tmp_path / "empty").error == "the model is opened"
    (tmp_path / "file").write_text("keep")
    for command in (("demo",), ("compare", "--rows", "lcm:4"), ("tune", "--style", "noto-mono")):
        assert fewstep(*command, out=tmp_path / "file").error == f"--out {tmp_path / 'file'} is a file"


def test_without_the_network_nothing_is_counted(monkeypatch, capsys):
    def missing():
        raise FewstepError("the package is not installed", "pip install it")

    monkeypatch.setattr(demo, "load_efficientnet", missing)
    assert demo.recogniser()([]) == "-"
    assert "not counted: the package is not installed; pip install it" in capsys.readouterr().err


def test_a_sheet_of_styles_is_full():
    assert len(demo.STYLED) == demo.SHEET_THINGS


def test_what_to_try_next_is_typed_as_the_demo_was(monkeypatch):
    monkeypatch.setattr("sys.argv", [".venv/bin/fewstep", "demo"])
    monkeypatch.setenv("PATH", "/nowhere")
    assert all(line.startswith("  .venv/bin/fewstep ") for line in demo.next_commands(DemoConfig()))
    monkeypatch.setattr("sys.argv", ["/usr/bin/pytest"])
    assert demo.next_commands(DemoConfig())[0] == '  fewstep sample "a happy red robot"'


def test_a_demo_replaces_an_earlier_one(tmp_path, monkeypatch):
    part = demo.Part("solvers", Image.new("RGB", (8, 8)), ())
    monkeypatch.setattr(demo, "compare_solvers", lambda *_: (part, []))
    for name in ("combine_styles", "distil_anew"):
        monkeypatch.setattr(demo, name, lambda *_: part)
    (tmp_path / "report.html").write_text("of an earlier demo")
    (tmp_path / "old.png").touch()
    demo.demo(DemoConfig(out=tmp_path, dtype="fp32"))
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "solvers.png"}


@pytest.mark.long
def test_the_story_is_played_whole(tmp_path):
    out = tmp_path / "demo"
    told = demo.demo(DemoConfig(out=out, distill_steps=2)).text
    rows = [line for line in told.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(demo.SOLVERS)
    for line, (solver, steps) in zip(rows[2:], demo.SOLVERS, strict=True):
        assert re.match(rf"\| {re.escape(solver)} +\| +{steps} \|", line)
    assert re.search(r"This took \d+\.\d minutes", told)
    assert {path.name for path in out.iterdir()} == {
        "report.html", "solvers.png", "styles.png", "distilled.png", "lora.safetensors",
    }  # fmt: skip
    assert all(str(path) in told for path in out.iterdir())
    report = (out / "report.html").read_text(encoding="utf-8")
    assert report.count("<img ") == 3
    assert not re.search(r"https?://", report)
    with Image.open(out / "solvers.png") as sheet:
        assert sheet.size[0] > 1000
