"""sample: kinds of files, a contact sheet, prompts from a file; and pictures drawn again from their recipes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.commands.redraw import typed_lora
from fewstep.models.references import parse_reference
from tests.tiny import tiny_images


@pytest.fixture(scope="module")
def drawing(tiny_model_folder):
    """Arguments that draw with the tiny model in two steps."""
    return ["--model", tiny_model_folder, "--steps", 2, "--device", "cpu"]


@pytest.fixture
def drawn(fewstep, tmp_path):
    """Draws as the arguments say; the files, or with --json the documents."""

    def draw(*arguments, out="out", **options):
        done = fewstep("sample", *arguments, out=tmp_path / out, **options)
        assert done.code == 0, done.err
        return json.loads(done.out) if "--json" in arguments else [Path(line) for line in done.out.splitlines()]

    return draw


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


# --- what is written ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "suffix"), [("png", ".png"), ("jpeg", ".jpg"), ("webp", ".webp")])
def test_kinds_of_files_and_a_contact_sheet(fewstep, drawn, drawing, kind, suffix):
    first, second, sheet = drawn("a cat", "a dog", *drawing, "--sheet", format=kind)
    assert [path.name for path in (first, second, sheet)] == [f"a-cat-0{suffix}", f"a-dog-1{suffix}", f"sheet{suffix}"]
    assert json.loads(fewstep("inspect", second, "--json").out)["prompt"] == "a dog"
    assert pixels(sheet).shape[1] == 2 * (16 + 6)
    refused = fewstep("inspect", sheet)
    assert (refused.code, refused.error) == (1, f"{sheet} carries no recipe of fewstep")


def test_json_names_the_sheet_beside_the_pictures(drawn, drawing):
    document = drawn("a cat", *drawing, "--json", "--sheet")
    assert [len(document["images"]), Path(document["sheet"]).name] == [1, "sheet.png"]


def test_prompts_of_a_file_follow_those_that_are_typed(drawn, drawing, tmp_path):
    (tmp_path / "list.txt").write_text("a dog\n\n  a fish \n")
    alone = drawn(*drawing, prompts=tmp_path / "list.txt")
    assert [path.stem for path in alone] == ["a-dog-0", "a-fish-1"]
    (tmp_path / "list.jsonl").write_text('{"text": "a dog"}\n{"text": "a fish"}\n')
    both = drawn("a cat", *drawing, prompts=tmp_path / "list.jsonl", count=2)
    assert [path.stem for path in both[::2]] == ["a-cat-0", "a-dog-2", "a-fish-4"]


def test_prompt_files_that_are_none_are_refused(fewstep, drawing, tmp_path):
    done = fewstep("sample", *drawing, prompts=tmp_path / "none.txt", out=tmp_path / "out")
    assert done.code == 1
    assert done.error.startswith("cannot read the prompts in")
    assert list(tmp_path.iterdir()) == []


# --- drawn again --------------------------------------------------------------------------------------------

RECIPES = {  # options that a recipe has to bring back
    "solver": ["--solver", "ddim", "--eta", 0.5, "--grid", "leading", "--guidance-scale", 2],
    "few steps": ["--solver", "tcd", "--gamma", 0.4, "--k", 50, "--guidance-scale", 1],
    "negative, size": [
        "--seed", 7,
        "--negative-prompt", "a dog", "--nag-scale", 3, "--guidance-scale", 1, "--width", 24, "--height", 12
    ],
    "image, mask": ["--image", "00.png", "--strength", 0.5, "--mask", "01.png"],
    "outpaint": ["--image", "00.png", "--outpaint", "3,0,2,5"],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with pictures to start from."""
    monkeypatch.chdir(tiny_images(tmp_path / "work", 2))
    return tmp_path / "work"


@pytest.mark.parametrize("options", RECIPES.values(), ids=RECIPES)
def test_a_picture_is_drawn_again_to_the_bit(drawn, drawing, folder, options):
    [first] = drawn("a cat", *drawing, "--dtype", "fp32", *options, out="first")
    [again] = drawn("--redraw", first, out="again")
    assert again.name == first.name
    assert (pixels(again) == pixels(first)).all()
    assert again.read_bytes() == first.read_bytes()  # the recipe too


def test_what_is_typed_is_changed_and_the_rest_stays(fewstep, drawn, drawing, folder):
    [first] = drawn("a cat", *drawing, "--seed", 5, "--negative-prompt", "a dog", "--solver", "ddim", "--eta", 0.5)
    one, two = drawn("--redraw", first, "--json", seed=6, count=2, width=24, out="again")["images"]
    assert (one["seed"], two["seed"], one["width"], one["height"]) == (6, 7, 24, 16)
    assert [one[name] for name in ("prompt", "negative_prompt", "eta", "steps")] == ["a cat", "a dog", 0.5, 2]
    [other] = drawn("a fish", "--redraw", first, "--json", solver="lcm", out="again")["images"]
    assert [other[name] for name in ("prompt", "solver", "eta", "grid")] == ["a fish", "lcm", None, "lcm"]
    (folder / "more.txt").write_text("a house")
    [other] = drawn("--redraw", first, "--json", prompts=folder / "more.txt", out="again")["images"]
    assert (other["prompt"], other["seed"]) == ("a house", 5)


def test_in_another_batch_it_is_the_same_within_two_levels(drawn, drawing, folder):
    pictures = drawn("a cat", "a dog", *drawing, "--dtype", "fp32", count=2, out="first")
    [again] = drawn("--redraw", pictures[2], out="again")
    assert np.abs(pixels(again).astype(int) - pixels(pictures[2])).max() <= 2


def test_a_file_it_was_started_from_has_to_be_there(fewstep, drawn, drawing, folder):
    [first] = drawn("a cat", *drawing, "--image", "00.png", "--strength", 0.5, out="first")
    shutil.copy("01.png", "00.png")
    done = fewstep("sample", redraw=first, out=folder / "x")
    assert (done.code, done.err) == (0, f"note: 00.png has changed since {first} was drawn with it\n")
    Path("00.png").rename("kept.png")
    done = fewstep("sample", redraw=first, out=folder / "y")
    assert (done.code, done.error) == (1, f"{first} was drawn with a picture as --image: 00.png, which is missing")
    assert done.hint.startswith("add --image FILE (its SHA-256 begins with ")
    assert not (folder / "y").exists()
    [given] = drawn("--redraw", first, "--json", image="kept.png", out="z")["images"]
    assert (given["image"]["file"], given["strength"]) == ("kept.png", 0.5)


def test_a_lora_that_has_changed_is_noted(fewstep, drawn, drawing, folder, tiny_model_folder):
    import fewstep as package

    make = {"model": str(tiny_model_folder), "data": folder, "rank": 1, "device": "cpu"}
    for steps in (1, 2):
        package.finetune(**make, train_steps=steps, out=folder / f"style{steps}")
    shutil.copy("style1/lora.safetensors", "style.safetensors")
    [first] = drawn("a cat", *drawing, "--lora", "style.safetensors:0.5,up=-1", out="first")
    [again] = drawn("--redraw", first, out="again")
    assert (pixels(again) == pixels(first)).all()
    shutil.copy("style2/lora.safetensors", "style.safetensors")
    done = fewstep("sample", redraw=first, out=folder / "x")
    assert done.err == f"note: the LoRA style.safetensors has changed since {first} was drawn with it\n"
    done = fewstep("sample", redraw=first, lora="style.safetensors:1", out=folder / "x")
    assert (done.code, done.err) == (0, "")


def test_pictures_without_a_recipe_or_with_a_broken_one_are_refused(fewstep, drawn, drawing, folder):
    done = fewstep("sample", redraw="00.png")
    assert (done.code, done.error) == (1, "00.png carries no recipe of fewstep")
    done = fewstep("sample", redraw="none.png")
    assert (done.code, done.error) == (1, "image not found: none.png")
    from fewstep.images import save_image

    path = save_image(folder / "odd", Image.new("RGB", (8, 8)), "png", {"fewstep": "7.0", "prompt": 5})
    done = fewstep("sample", redraw=path)
    assert done.code == 1
    assert done.error.startswith(f"the recipe in {path} cannot be read (prompt: ")
    assert done.hint == "fewstep 7.0 drew the picture: use that version"


def test_inspect_shows_how_a_picture_was_drawn(fewstep, drawn, drawing, folder):
    [first] = drawn("a cat", *drawing, "--image", "00.png", "--strength", 0.5, out="first")
    done = fewstep("inspect", first)
    lines = dict(line.split(None, 1) for line in done.out.splitlines() if not line.startswith(("live", "control")))
    assert (lines["file"], lines["prompt"], lines["seed"], lines["strength"]) == (str(first), "a cat", "0", "0.5")
    assert lines["image"].startswith("00.png (SHA-256 ")
    assert "mask" not in lines
    both = json.loads(fewstep("inspect", first, "lcm", "--json").out)  # told apart by what is in them
    assert [both[0]["steps"], both[1]["layout"]] == [2, "kohya"]
    assert fewstep("inspect", folder / "none.png").error == f"image not found: {folder / 'none.png'}"


@pytest.mark.parametrize("text", ["a:0.5:1", "b/c.safetensors:-0.3,te=0.1,up=1e-07", "lcm:0.30000000000000004"])
def test_loras_of_a_recipe_are_typed_as_they_were(text):
    reference = parse_reference(text)
    facts = {"file": str(reference.path), "weight": reference.weight, "blocks": dict(reference.blocks), "sha256": ""}
    assert parse_reference(typed_lora(facts)) == reference
