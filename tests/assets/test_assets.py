"""The shipped files: complete, as they were made, and refused by name when they are not."""

import json
import shutil

import pytest

from fewstep import assets
from fewstep.assets import checksums, verified
from fewstep.errors import FewstepError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model" / "unet").mkdir(parents=True)
    (tmp_path / "model" / "unet" / "weights.safetensors").write_bytes(b"weights")
    (tmp_path / "model-card.md").write_text("a card")
    (tmp_path / "lora.safetensors").write_bytes(b"lora")
    (tmp_path / "code.py").write_text("x = 1")
    (tmp_path / assets.CHECKSUMS).write_text(json.dumps(checksums(tmp_path)))
    return tmp_path


def test_every_shipped_file_is_listed_with_its_hash():
    assert json.loads((assets.FOLDER / assets.CHECKSUMS).read_text()) == checksums()


def test_the_list_leaves_code_and_itself_out(folder):
    assert sorted(checksums(folder)) == ["lora.safetensors", "model-card.md", "model/unet/weights.safetensors"]


def test_what_is_whole_is_given(folder):
    assert verified("model", folder) == folder / "model"
    assert verified("lora.safetensors", folder).read_bytes() == b"lora"


def test_a_damaged_file_is_named(folder):
    (folder / "model" / "unet" / "weights.safetensors").write_bytes(b"weighty")
    with pytest.raises(FewstepError, match=r"shipped file .*weights\.safetensors is damaged\n\nhint: install"):
        verified("model", folder)
    assert verified("lora.safetensors", folder)  # the others go on working


def test_a_missing_file_is_named(folder):
    (folder / "lora.safetensors").unlink()
    with pytest.raises(FewstepError, match=r"shipped file .*lora\.safetensors is missing"):
        verified("lora.safetensors", folder)


def test_a_broken_list_is_named(folder):
    (folder / assets.CHECKSUMS).write_text("{")
    with pytest.raises(FewstepError, match=r"list of shipped files, .*checksums\.json, is not readable"):
        verified("model", folder)


def test_only_listed_names_are_given(folder):
    with pytest.raises(FewstepError, match="mod is not among the shipped files"):
        verified("mod", folder)


def test_other_names_are_not_shipped():
    assert assets.shipped_model("./emoji") is None
    assert assets.shipped_lora("lcm.safetensors") is None


def test_a_damaged_asset_stops_sampling_with_one_line(monkeypatch, tmp_path, fewstep):
    copy = tmp_path / "assets"
    shutil.copytree(assets.FOLDER, copy)
    with (copy / "emoji" / "unet" / "config.json").open("a") as file:
        file.write(" ")
    monkeypatch.setattr(assets, "verified", lambda name: verified(name, copy))
    outcome = fewstep("sample", "a cat", out=tmp_path / "out")
    assert outcome.code == 1
    assert outcome.error.endswith("config.json is damaged")
    assert not (tmp_path / "out").exists()
