"""`fewstep data check` and `fewstep data encode`."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from fewstep.data.check import alike, look_at
from fewstep.data.sources import FileSample
from fewstep.models.load import load_model
from tests.data.kinds import pack


def noise(width, height, seed=0):
    values = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path):
    """Images of many kinds, with one of every fault."""
    folder = tmp_path / "photos"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(60, 40).save(folder / "a.png")
    noise(40, 60, 1).save(folder / "turned.jpg", exif=exif)
    noise(12, 30, 2).save(folder / "small.png")
    noise(64, 64, 3).convert("RGBA").resize((64, 64)).save(folder / "b.png")
    shutil.copy(folder / "a.png", folder / "copy.png")
    noise(60, 40).save(folder / "again.jpg", quality=95)
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(folder / "clear.png")
    noise(40, 40, 5).save(folder / "moving.webp", save_all=True, append_images=[noise(40, 40, 6)], lossless=True)
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:60])
    for image in folder.iterdir():
        image.with_suffix(".txt").write_text(f"{image.stem} of one")
    (folder / "small.txt").write_text("word " * 200)
    (folder / "clear.txt").write_text("")
    (folder / "b.txt").write_text("a of one")
    (folder / "latin.txt").write_bytes("größer".encode("latin-1"))
    noise(30, 30, 4).save(folder / "latin.png")
    return folder


def test_what_is_found(fewstep, photos, tmp_path, tiny_model_folder):
    done = fewstep("data", "check", photos, "--json", model=tiny_model_folder, out=tmp_path / "out")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    model = load_model(str(tiny_model_folder))
    limit = min(model.tokenizer.model_max_length, model.text_encoder.config.max_position_embeddings)
    assert found["images"] == 8
    assert found["left_out"] == "2 broken ones"
    assert {one["key"] for one in found["broken"]["examples"]} == {f"{photos}/cut.png", f"{photos}/latin.png"}
    assert found["size"] == {"smallest": [12, 30], "median": [60, 40], "largest": [64, 64]}
    assert found["trained_at"] == 16
    assert found["below"] == {"count": 1, "examples": ["small.png"]}
    assert sum(one["images"] for one in found["smaller_sides"]) == sum(found["shapes"].values()) == 8
    assert found["shapes"]["1:1"] == 3
    assert found["formats"] == {"JPEG": 2, "PNG": 5, "WEBP": 1}
    assert [found[name]["examples"] for name in ("turned", "transparent", "animated")] == [
        ["turned.jpg"],
        ["clear.png"],
        ["moving.webp"],
    ]
    assert found["doubles"] == {"count": 1, "examples": [["a.png", "copy.png"]]}
    assert found["alike"]["count"] == 1
    assert "again.jpg" in found["alike"]["examples"][0]
    captions = found["captions"]
    assert (captions["count"], captions["empty"], captions["too_long"], captions["limit"]) == (8, 1, 1, limit)
    assert captions["repeated"] == {"count": 2, "examples": [{"caption": "a of one", "images": 2}]}
    with Image.open(found["picture"]) as picture:
        assert picture.size[0] >= 1000
    skipped = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [line["key"] for line in skipped] == [f"{photos}/cut.png", f"{photos}/latin.png"]


def test_the_text_says_the_same(fewstep, photos, tiny_model_folder):
    done = fewstep("data", "check", photos, model=tiny_model_folder)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"{photos}: 8 images, 8 captions\nleft out: 2 broken ones\n")
    for line in (
        "  files       2 JPEG, 5 PNG, 1 WEBP",
        "  !!  2 broken, at which training would stop: --skip-broken leaves them out",
        "  !!  1 image below 16 pixels, which would be scaled up: --min-size 16 leaves it out",
        "  !!  1 image with the same bytes as another",
        "        a.png = copy.png",
        "  !!  1 empty caption",
        "        2 x a of one",
    ):
        assert f"\n{line}\n" in done.out
    assert all(len(line) < 120 for line in done.out.splitlines())


def test_filters_and_clean_data(fewstep, photos, tiny_model_folder):
    done = fewstep("data", "check", photos, "--json", model=tiny_model_folder, min_size=30, max_samples=3)
    found = json.loads(done.out)
    assert (found["images"], found["below"]["count"]) == (3, 0)
    for path in photos.iterdir():
        if path.stem not in ("a", "turned"):
            path.unlink()
    done = fewstep("data", "check", photos, model=tiny_model_folder)
    assert "!!" not in done.out
    assert done.out.count("  ok  ") == 7
    done = fewstep("data", "check", photos, "--json", "--where", "score > 1", model=tiny_model_folder)
    assert done.error == "--where: no image has a column score"


def test_nothing_that_can_be_read(fewstep, tmp_path, tiny_model_folder):
    path = pack(tmp_path / "x.tar", [("a.png", b"no"), ("a.txt", b"a")])
    done = fewstep("data", "check", path, model=tiny_model_folder, out=tmp_path / "out")
    assert done.code == 0
    assert done.out.startswith(f"{path}: 0 images\nleft out: 1 broken one\n\n  !!  1 broken")


def test_a_model_without_text_needs_no_captions(fewstep, photos, tiny_pixels_folder):
    found = json.loads(fewstep("data", "check", photos, "--json", model=tiny_pixels_folder).out)
    assert (found["images"], found["captions"]) == (9, None)


def test_what_looks_alike(tmp_path):
    """Saved again, or scaled, an image looks the same; another does not, nor does it in another colour."""
    variants = {
        "a.png": noise(64, 48),
        "b.jpg": noise(64, 48),
        "c.png": noise(64, 48).resize((48, 36)),
        "d.png": noise(64, 48, 1),
        "e.png": Image.merge("RGB", noise(64, 48).split()[::-1]),
    }
    for name, image in variants.items():
        image.save(tmp_path / name)
    looks = [look_at(FileSample(tmp_path / name, ())) for name in variants]
    assert [[look.sample.path.name for look in group] for group in alike(looks)] == [["a.png", "b.jpg", "c.png"]]
    assert alike([]) == []


def test_encoded_data_is_found_by_a_run(fewstep, tiny_model_folder, tiny_data_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    small = {"model": tiny_model_folder, "size": 16}
    done = fewstep("data", "encode", tiny_data_folder, "--json", **small)
    assert done.code == 0, done.err
    assert json.loads(done.out) == {
        "source": str(tiny_data_folder), "samples": 6, "size": 16, "folder": str(tmp_path / "cache")
    }  # fmt: skip
    monkeypatch.setattr("fewstep.models.model.Model.encode", None)
    run = fewstep("finetune", data=tiny_data_folder, out=tmp_path / "run", steps=1, rank=1, batch_size=2, **small)
    assert run.code == 0, run.err


def test_encoded_data_in_a_folder(fewstep, tiny_model_folder, tiny_data_folder, tmp_path):
    done = fewstep("data", "encode", tiny_data_folder, model=tiny_model_folder, size=16, out=tmp_path / "out")
    assert done.out == f"6 samples of {tiny_data_folder}, encoded in {tmp_path / 'out'}\n"
    assert f"distill --model {tiny_model_folder} --data {tmp_path / 'out'}" in done.err
    (tmp_path / "file").write_text("")
    done = fewstep("data", "encode", tiny_data_folder, model=tiny_model_folder, out=tmp_path / "file")
    assert (done.code, done.error) == (2, f"--out {tmp_path / 'file'} is a file")
    done = fewstep("data", "encode", model=tiny_model_folder)
    assert (done.code, done.error) == (2, "0 sources were given, not one")
