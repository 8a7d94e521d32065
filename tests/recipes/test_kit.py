"""The kit's recipe at a tiny size: features taken once, a reference with its errors, drawings as training data."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fewstep.data.sources import list_samples
from fewstep.errors import FewstepError, UsageError
from fewstep.images import read_image
from fewstep.metrics.agreement import Pictures
from fewstep.metrics.reference import agreement_with, load_reference
from recipes.emoji import kit
from recipes.emoji.captions import STYLES, main_caption
from recipes.emoji.features import drawing_features
from recipes.emoji.kit import KitConfig, well_known

THINGS = ("red apple", "cat face", "rocket", "something nobody knows", "castle", "dog face", "pizza", "umbrella")
DIM = 12  # features of the stand-in: 2 x 2 means of each colour


def row(style, thing):
    """As dataset.py writes them: every thing in twelve styles, some pairs of the base styles held out."""
    number, kind = THINGS.index(thing), STYLES[style].split
    held_out = kind == "base" and (number + list(STYLES).index(style)) % 5 == 0
    about = {"style": style, "concept": f"1f{number:03}", "label": thing, "tags": ["a tag"], "group": "objects"}
    split = {"split": "held-out" if held_out else kind, "license": STYLES[style].licence}
    return {"file_name": f"{style}/1f{number:03}.png", **about, **split}


ROWS = [row(style, thing) for style in STYLES for thing in THINGS]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Eight things in twelve styles, 32 px: four squares of colours that the thing decides, and noise."""
    folder, random = tmp_path_factory.mktemp("emoji") / "images", np.random.default_rng(0)
    colours = {label: random.integers(20, 236, (2, 2, 3)) for label in THINGS}
    for line in ROWS:
        pixels = np.kron(colours[line["label"]] + random.integers(-8, 9, (2, 2, 3)), np.ones((16, 16, 1)))
        path = folder / line["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in ROWS]
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "dataset.json").write_text("{}")
    return folder


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """The network's place, so that no package is needed."""
    monkeypatch.setattr(
        "recipes.emoji.features.load_efficientnet",
        lambda device: lambda pixels: F.adaptive_avg_pool2d(pixels, 2).flatten(1),
    )


@pytest.fixture
def config(images, tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "kit" / "reference.safetensors"
    return KitConfig(images=images, out=out, dims=DIM, rank=4, drawings=20)


@pytest.fixture
def made(config, capsys):
    """The figures printed, after a run."""
    kit.run(config)
    return json.loads(capsys.readouterr().out)


def test_features_are_in_the_metadatas_order_and_taken_once(images, tmp_path, monkeypatch):
    drawings = drawing_features(images, tmp_path)
    assert drawings.features.shape == (len(ROWS), DIM)
    assert drawings.features.dtype == torch.float32
    assert drawings.styles == [line["style"] for line in ROWS]
    with Image.open(images / ROWS[37]["file_name"]) as image:
        first = np.array(image)[0, 0] / 127.5 - 1
    np.testing.assert_allclose(drawings.features[37].view(3, 2, 2)[:, 0, 0], first, atol=1e-3)
    monkeypatch.setattr("recipes.emoji.features.load_efficientnet", None)
    assert torch.equal(drawing_features(images, tmp_path).features, drawings.features)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"damaged")
    with pytest.raises(FewstepError, match=r"unreadable features: .*\n\nhint: delete the file"):
        drawing_features(images, tmp_path)


def test_missing_images_are_named(tmp_path):
    with pytest.raises(FewstepError, match=r"no emoji images in .*\n\nhint: run python -m recipes.emoji.dataset first"):
        drawing_features(tmp_path / "none", tmp_path)


def test_the_reference_judges_as_the_drawings_do(made, config):
    assert made["agreement"]["pairs"] == sum(line["split"] == "base" for line in ROWS)
    assert made["agreement"]["full"] == made["agreement"]["kit"] > 0.9
    assert made["agreement"]["alike"] == 1
    reference, drawings = load_reference(config.out), drawing_features(config.images, config.out.parents[1] / "cache")
    swapped = Pictures(drawings.features[:8], drawings.styles[:8], drawings.concepts[:8][::-1])
    assert not any(agreement_with(swapped, reference).hits)


def test_every_style_has_its_error_beside_its_yardsticks(made):
    assert set(made["frechet"]) == set(STYLES)
    for style, errors in made["frechet"].items():
        assert errors["other"] != style
        assert 0 <= errors["kit"] < errors["halves"]
        assert errors["relative_error"] == pytest.approx(errors["other_kit"] / errors["other_full"] - 1)


def test_figures_are_kept_and_name_the_sizes(made, config):
    folder = config.out.parent
    assert json.loads((folder / "kit.json").read_text()) == made
    assert made["bytes"]["reference"] == config.out.stat().st_size
    written = [file for file in (folder / "drawings").rglob("*") if file.is_file()]
    assert made["bytes"]["drawings"] == sum(file.stat().st_size for file in written)
    assert made["drawings"] == len(written) - 1


def test_the_drawings_are_training_data_with_licences(made, config, images):
    folder = config.out.parent / "drawings"
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    base = {main_caption(line["style"], line["label"]): line for line in ROWS if line["split"] == "base"}
    assert len(list_samples(folder).samples) == len(lines) == made["drawings"] == 20
    for line in lines:
        assert line["license"] == STYLES[line["style"]].licence == base[line["text"]]["license"]
        kept, real = folder / line["file_name"], images / base[line["text"]]["file_name"]
        assert (read_image(kept, 32, 32) - read_image(real, 32, 32)).abs().mean() < 0.05


def test_the_drawings_are_well_known_and_of_all_base_styles():
    base = [line for line in ROWS if line["split"] == "base"]
    assert well_known(ROWS, 20) == well_known(ROWS, 30)[:20]
    everything = well_known(ROWS, 1000)
    assert len(everything) == sum(line["label"] != "something nobody knows" for line in base)
    assert {line["split"] for line in everything} == {"base"}
    assert len({line["label"] for line in well_known(ROWS, 7)}) >= 6
    assert max(Counter(line["style"] for line in well_known(ROWS, 27)).values()) <= 4
    assert {line["style"] for line in well_known(ROWS, 27)} == {
        s for s, about in STYLES.items() if about.split == "base"
    }


def test_a_second_run_replaces_the_first_but_no_other_folder(made, config, capsys):
    kit.run(config.model_copy(update={"drawings": 5}))
    assert (
        json.loads(capsys.readouterr().out)["drawings"]
        == len(list_samples(config.out.parent / "drawings").samples)
        == 5
    )
    (config.out.parent / "kit.json").unlink()
    with pytest.raises(UsageError, match=r"drawings is already there and is not a kit's folder"):
        kit.run(config)
