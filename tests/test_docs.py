"""The documents say what is so: the command reference is current, and the README's commands run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fewstep.cli import main
from fewstep.hub import ALIASES
from tests.tiny import tiny_images, tiny_model

ROOT = Path(__file__).parents[1]
CPU = ["--device", "cpu"]
QUICK = {
    "distill": ["--steps", "2", "--rank", "2", *CPU],
    "finetune": ["--steps", "2", "--rank", "2", *CPU],
    "sample": CPU,
    "merge": [],
    "compare": ["--images", "2", *CPU],
}


def readme_commands() -> list[list[str]]:
    """Every `fewstep ...` line of the README's code blocks, as words."""
    blocks = re.findall(r"```\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("fewstep ")]


def test_the_command_reference_is_current(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))}
    command = [sys.executable, "-m", "studies.commands", str(tmp_path / "commands.md")]
    subprocess.run(command, env=environment, check=True)
    current, written = (folder / "commands.md" for folder in (tmp_path, ROOT / "docs"))
    assert written.read_text(encoding="utf-8") == current.read_text(encoding="utf-8"), "run python -m studies.commands"


def test_the_readmes_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model(tmp_path / "my-model")
    for name in ("my-images", "paper-cuts"):
        tiny_images(tmp_path / name, count=4)
    monkeypatch.chdir(tmp_path)
    commands = readme_commands()
    assert {words[0] for words in commands} == QUICK.keys()
    for words in commands:
        assert main([*words, *QUICK[words[0]]]) == 0, words
    assert list((tmp_path / "images").glob("*.png"))


def test_the_readmes_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [block] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["robot-7.png", "robot-8.png"]
    assert [lora["file"] for lora in names["castle"].recipe["lora"]] == ["noto-mono", "lcm"]
    assert [lora["file"] for lora in names["other"].recipe["lora"]] == ["high-contrast", "lcm"]
    assert [lora["file"] for lora in names["session"].loras] == ["noto-mono", "lcm"]
    assert names["castle"].image.size == (128, 128)


def test_the_table_of_models_is_the_codes() -> None:
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    rows = [
        f"| `{name}` | {place.repository} | {place.revision} | [{licence.name}]({licence.url}) |"
        for name, (place, licence) in ALIASES.items()
    ]
    assert [line for line in text.splitlines() if line.startswith("| `") and line.count("|") == 5] == rows


def test_links_between_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
