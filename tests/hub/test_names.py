"""Aliases, hub ids, paths; licences and titles."""

from pathlib import Path

import pytest

from fewstep.families import FAMILIES
from fewstep.hub import ALIASES, hub_name, licence_of, resolved, title_of
from fewstep.hub.names import LORA_FILE, MODELS, MOVED, HubName

COMMIT = "0" * 40


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("owner/name", HubName("owner/name")),
        ("owner/na.me-1_2@v1", HubName("owner/na.me-1_2", "v1")),
        ("owner/name@refs/pr/1", HubName("owner/name", "refs/pr/1")),
        ("owner/name/a.safetensors", HubName("owner/name", "main", "a.safetensors")),
        ("owner/name/deep/a b.safetensors@x", HubName("owner/name", "x", "deep/a b.safetensors")),
        ("sdxl@main", ALIASES["sdxl"].place._replace(revision="main")),
        *((alias, ALIASES[alias].place) for alias in ALIASES),
    ],
)
def test_what_is_on_the_hub(typed, meant):
    assert hub_name(typed) == meant


@pytest.mark.parametrize(
    "typed",
    [
        "emoji", "lcm", "name", "./owner/name", "../owner", "/owner/name", "~/name", "owner/name/folder", "owner/",
        "owner/name@", "owner/name@../x", "owner/../name", "owner/a.safetensors", "a.ckpt/b.ckpt", "C:\\models\\x", "",
        "owner/name/../../a.safetensors", "sdxl@../x", "-x/y",
    ],
)  # fmt: skip
def test_what_is_not(typed):
    assert hub_name(typed) is None


def test_paths_stay_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "fast").mkdir(parents=True)
    assert resolved("runs/fast") == Path("runs/fast")  # a folder that is there is never looked for on the hub
    assert resolved("runs/slow") == Path("runs/slow")  # nor what would lie in one that is there
    assert resolved("nowhere.safetensors") == Path("nowhere.safetensors")
    assert resolved("~/x") == Path.home() / "x"
    (tmp_path / "sd15").mkdir()
    assert resolved("sd15") == Path("sd15")


def test_the_table():
    assert MODELS.keys() == FAMILIES.keys() - {"emoji"}
    assert all(alias.place.file == (LORA_FILE if "lora" in name else "") for name, alias in ALIASES.items())
    assert set(MOVED.values()) <= ALIASES.keys()
    assert not {alias.place.repository for alias in ALIASES.values()} & MOVED.keys()


@pytest.mark.parametrize(
    ("name", "licence"),
    [
        ("sd15", "CreativeML-OpenRAIL-M"),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5@main", "CreativeML-OpenRAIL-M"),
        ("sd21", "OpenRAIL++-M"),
        ("sdxl", "OpenRAIL++-M"),
        ("ssd-1b", "Apache-2.0"),
        ("segmind/SSD-1B", "Apache-2.0"),
        ("lcm-lora-sdxl", "OpenRAIL++-M"),
        ("owner/name", None),
        ("nowhere", None),
    ],
)
def test_licences_by_the_table(name, licence):
    assert licence_of(name) == licence


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\ntags: [x]\n---\n# Text\n", "Apache-2.0"),
        ("---\nlicense: creativeml-openrail-m\n---\n", "CreativeML-OpenRAIL-M"),
        ("---\nlicense: other\nlicense_name: sai-nc-community\n---\n", "sai-nc-community"),
        ("---\nlicense: other\n---\n", None),
        ("---\nlicense: [mit, bsd]\n---\n", "mit; bsd"),
        ("---\nlicense: 3\n---\n", None),
        ("---\n- a list\n---\n", None),
        ("---\n[broken: {\n---\n", None),
        ("# No front matter\n", None),
        ("", None),
    ],
)
def test_licences_by_the_card(card, licence, tmp_path):
    (tmp_path / "README.md").write_text(card)
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"")
    assert licence_of(tmp_path) == licence_of(str(file)) == licence


def test_what_came_from_the_hub_is_called_and_licensed_as_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    sdxl = tmp_path / "models--stabilityai--stable-diffusion-xl-base-1.0" / "snapshots" / COMMIT
    other = tmp_path / "models--owner--na--me" / "snapshots" / COMMIT
    for folder in (sdxl, other):
        folder.mkdir(parents=True)
    (other / "README.md").write_text("---\nlicense: mit\n---\n")
    (other / "x.safetensors").write_bytes(b"")
    assert title_of(sdxl) == "stabilityai/stable-diffusion-xl-base-1.0"
    assert licence_of(sdxl) == "OpenRAIL++-M"
    assert title_of(other / "x.safetensors") == "owner/na--me/x.safetensors"
    assert licence_of(other / "x.safetensors") == licence_of(f"owner/na--me@{COMMIT}") == "MIT"
    assert title_of(tmp_path / "my-model") == "my-model"
