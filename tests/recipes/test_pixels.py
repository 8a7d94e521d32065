"""The recipe of models in pixel space: its commands, its data, and a whole run at a tiny size."""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fewstep.cli import main, main_of
from fewstep.cli.app import new_app
from fewstep.errors import FewstepError, UsageError
from fewstep.models.load import load_model
from recipes.emoji import build as build_stages
from recipes.emoji import pixels
from recipes.emoji.pixels import PixelsConfig, stages, table_of, write_fresh
from studies import pixels as study

TINY = {"block_out_channels": (8, 8, 8), "attention_head_dim": 8}


class Colours(nn.Module):
    """A stand-in for Inception: the mean colour of each quarter."""

    label, sha256, dim = "colours", "0", 12

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))

    def forward(self, pixels: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(pixels, 2).flatten(1) * self.one


class Done:
    def __init__(self, returncode: int) -> None:
        self.returncode = returncode


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twenty-four drawings of two groups, as dataset.py writes them, and one that is held out."""
    folder = tmp_path / "images"
    (folder / "noto").mkdir(parents=True)
    rows = []
    for i in range(25):
        Image.new("RGB", (48, 48), (10 * i, 200, 250 - 10 * i)).save(folder / "noto" / f"{i}.png")
        group, split = ("faces" if i % 2 else "food"), ("held-out" if i == 24 else "base")
        rows.append({"file_name": f"noto/{i}.png", "text": f"noto emoji of {i}", "group": group, "split": split})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_every_command_line_is_understood(tmp_path: Path) -> None:
    for name, command in stages(PixelsConfig(), tmp_path / "data.jsonl").items():
        if command[1] == "fewstep":
            _, bound, _ = new_app().parse_args(command[2:], exit_on_error=False, print_error=False)
            config = bound.arguments["config"]
            assert (config.out.name, config.full, config.size) == (name, True, 32)
            assert config.train_steps == pixels.STEPS[name]
        else:
            assert find_spec(command[1])
    short = stages(PixelsConfig(share=0.01), tmp_path / "data.jsonl")
    assert short["ct"][short["ct"].index("--steps") + 1] == "50"


def test_the_data_are_the_base_drawings_of_a_group(images: Path, tmp_path: Path) -> None:
    for group, count in {"faces": 12, "food": 12, "all": 24}.items():
        file = table_of(PixelsConfig(group=group, folder=images))
        assert len(file.read_text().splitlines()) == count
    with pytest.raises(
        UsageError, match=r"^there are no drawings of group cats\n\nhint: known groups: all, faces, food"
    ):
        table_of(PixelsConfig(group="cats", folder=images))


def test_a_fresh_model_opens_and_is_the_same_every_time(tmp_path: Path) -> None:
    for name in "ab":
        write_fresh(tmp_path / name)
    one, other = (load_model(str(tmp_path / name)) for name in "ab")
    assert (one.size, one.prediction_type, one.takes_text) == (32, "v_prediction", False)
    assert 2e6 < sum(p.numel() for p in one.unet.parameters()) < 3e6
    assert all(torch.equal(a, b) for a, b in zip(one.unet.parameters(), other.unet.parameters(), strict=True))


def test_a_whole_run(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps each of a tiny network, pictures of every row, the table, the page and its picture."""
    monkeypatch.setattr(pixels, "NETWORK", pixels.NETWORK | TINY)
    monkeypatch.setattr(study, "load_inception", lambda device: Colours())
    page = tmp_path / "docs" / "pixel-space.md"

    def here(command: list[str], **_: object) -> Done:
        if command[2] == "fewstep":
            return Done(main(command[3:]))
        return Done(main_of(study.PixelStudyConfig, study.run, [*command[3:], "--out", str(page)]))

    monkeypatch.setattr(build_stages, "subprocess", SimpleNamespace(run=here))
    common = {"folder": images, "out": tmp_path / "models", "group": "all", "share": 2 / 8000, "device": "cpu"}
    pixels.run(PixelsConfig(images=40, precision="fp32", **common))
    figures = json.loads(page.with_suffix(".json").read_text())
    assert [row["nfe"] for row in figures["rows"]] == [50, 4, 2, 1, 4, 2, 1, 4, 2, 1]
    assert (figures["drawings"], figures["compared"], figures["images"]) == (24, 24, 40)
    assert {name: row["method"] for name, row in figures["training"].items()} == {
        "teacher": "denoising",
        "cd": "cd",
        "ct": "ct",
    }
    assert re.search(r"^\| CT +\| +lcm \| +1 \| +1 \|", page.read_text(), re.M)
    with Image.open(page.parent / "pictures" / "pixel-space.jpg") as picture:
        assert picture.width > 12 * 64


def test_a_failing_stage_stops_the_others(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_stages, "subprocess", SimpleNamespace(run=lambda command, **_: Done(3)))
    with pytest.raises(FewstepError, match="stage teacher ended with exit code 3"):
        pixels.run(PixelsConfig(group="all", folder=images, out=tmp_path / "models"))
