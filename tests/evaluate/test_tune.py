"""tune: every pair from the same noise, measured as compare measures, resumable, and its best can be typed."""

import json
import shlex

import pytest
import torch
from PIL import Image

from fewstep.configs import TuneConfig, build
from fewstep.evaluate import measure, row_pictures, tune
from fewstep.lora.layers import initial, shape_of
from fewstep.lora.low_rank import Adapter, LowRank
from fewstep.lora.recipe import Recipe
from fewstep.lora.writing import save_adapter
from fewstep.metrics.agreement import Pictures
from fewstep.metrics.networks import EfficientNet, Inception
from fewstep.metrics.reference import compress, save_reference
from fewstep.models.load import load_model
from tests.evaluate.stand_ins import DIM, Features
from tests.sessions import session
from tests.tiny import tiny_images

LCD = Recipe(method="lcd", solver="lcm", steps=2, guidance_scale=1.0, k=20)
PAIRS = [(style, concept) for style in ("line", "noto") for concept in ("cat", "dog", "fish", "house")]


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch, tmp_path):
    """Quick networks, a kit of random drawings, and a cache of each test's own."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tune, "load_inception", lambda device: Features(Inception.label))
    monkeypatch.setattr(tune, "load_efficientnet", lambda device: Features(EfficientNet.label))
    features = torch.randn(len(PAIRS), DIM, generator=torch.Generator().manual_seed(0))
    pictures = Pictures(features, *(list(part) for part in zip(*PAIRS, strict=True)))
    save_reference(tmp_path / "kit" / "reference.safetensors", compress(pictures, 4, EfficientNet.label, rank=2))
    monkeypatch.setattr(measure, "shipped_kit", lambda: tmp_path / "kit")


@pytest.fixture
def draws(monkeypatch):
    """The LoRAs of every batch that was drawn."""
    found, genuine = [], row_pictures.draw_batch

    def counted(pipeline, *others):
        found.append(tuple(f"{lora['weight']:g}" for lora in pipeline.loras))
        return genuine(pipeline, *others)

    monkeypatch.setattr(row_pictures, "draw_batch", counted)
    return found


@pytest.fixture(scope="module")
def loras(tiny_model_folder, tmp_path_factory):
    """A style and an acceleration LoRA of the tiny model."""
    folder = tmp_path_factory.mktemp("loras")
    layers = load_model(str(tiny_model_folder)).layers()
    shapes = {n: s for n, x in layers.items() if not n.startswith("text") and (s := shape_of(x)) is not None}
    for seed, (name, recipe) in enumerate((("style", Recipe(method="denoising")), ("fast", LCD))):
        torch.manual_seed(seed)
        updates = {n: LowRank(u.A, torch.randn_like(u.B) * 0.1) for n, u in initial(shapes, 1, seed).items()}
        save_adapter(folder / f"{name}.safetensors", Adapter(updates), recipe, torch.float32, "kohya", {})
    return folder


@pytest.fixture
def config(tiny_model_folder, loras, tmp_path):
    real, prompts = tiny_images(tmp_path / "real", 14), tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"text": f"{s} {c}", "style": s, "concept": c}) for s, c in PAIRS))

    def make(**options):
        values = {"style": str(loras / "style.safetensors"), "acceleration": str(loras / "fast.safetensors")}
        values |= {"model": str(tiny_model_folder), "grid": "0.5,1", "images": 8, "reference": real}
        values |= {"prompt_file": prompts, "device": "cpu", "out": tmp_path / "out"}
        return build(TuneConfig, **(values | options))

    return make


def test_the_document_has_its_schema_and_the_best_can_be_typed(config, draws):
    wish = config()
    document = tune.tune(wish)
    assert document == json.loads((wish.out / "table.json").read_text(encoding="utf-8"))
    rows = document["candidates"]
    assert [row["found_in"] for row in rows[:4]] == ["grid"] * 4
    assert {row["found_in"] for row in rows[4:]} == {"round 1"}
    assert len(draws) == len(rows) <= 8  # each pair once
    assert sorted(row["rank"] for row in rows) == list(range(1, len(rows) + 1))
    assert all(row["style_distance"] > 0 <= row["agreement"] <= 1 for row in rows)
    nearest = min(rows, key=lambda row: row["style_distance"])
    assert (nearest["behind"], nearest["behind_error"], nearest["within_error"]) == (0, 0, True)
    best = next(row for row in rows if row["rank"] == 1)
    assert best["agreement"] == max(row["agreement"] for row in rows if row["within_error"])
    typed = shlex.split(document["best"]["typed"])
    assert (typed[::2], typed[1::2]) == (["--lora"] * 2, best["lora"])
    session(wish.model, typed[1::2])
    protocol = document["protocol"]
    assert (protocol["solver"], protocol["steps"], protocol["guidance_scale"]) == ("lcm", 2, 1.0)
    assert protocol["agreement_chance"] == 0.25
    assert any(note.startswith("CLIP score left out") for note in protocol["left_out"])
    table = (wish.out / "table.md").read_text(encoding="utf-8")
    assert table.endswith(f"best: {document['best']['typed']}\n")
    with Image.open(wish.out / "sheet.png") as sheet:
        assert sheet.size == (210 + 2 * 262, 34 + 2 * 262)  # rows: style; columns: acceleration
    assert (wish.out / "refined.png").is_file()


def test_all_pairs_start_from_the_same_noise_and_resume(config, draws):
    wish = config(rounds=0)
    document = tune.tune(wish)
    assert draws == [("0.5", "0.5"), ("0.5", "1"), ("1", "0.5"), ("1", "1")]
    assert tune.tune(wish) == document
    assert len(draws) == 4  # nothing is drawn again
    tune.tune(config(rounds=0, grid="0.5,1:0.5,0.75,1"))
    assert draws[4:] == [("0.5", "0.75"), ("1", "0.75")]  # one more column costs only itself
    assert not (wish.out / "refined.png").exists()


def test_blocks_are_drawn_for_themselves(config, draws):
    document = tune.tune(config(rounds=0, grid="1", blocks=True))
    rows = [row for row in document["candidates"] if row["found_in"] == "blocks"]
    assert 6 <= len(rows) <= 12
    assert {name for row in rows for name in row["style_blocks"]} == {"down", "mid", "up"}
    assert {name for row in rows for name in row["acceleration_blocks"]} <= {"down", "mid", "up"}
    assert len({row["style_distance"] for row in document["candidates"]}) == len(document["candidates"]) == len(draws)


def test_without_concepts_there_is_no_agreement(config):
    document = tune.tune(config(prompt_file=None, rounds=0))
    assert {row["agreement"] for row in document["candidates"]} == {None}
    best = next(row for row in document["candidates"] if row["rank"] == 1)
    assert best["behind"] == 0
    assert any(
        note.startswith("agreement left out: the prompts have no style") for note in document["protocol"]["left_out"]
    )


def test_a_style_that_ships_needs_no_reference():
    prompts = tune.prompts_of(build(TuneConfig, style="noto-mono")).prompts
    assert all(prompt.text.startswith("emoji of ") and prompt.style == "noto-mono" for prompt in prompts)
    assert len({prompt.concept for prompt in prompts}) == len(prompts) > 30


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"reference": None, "prompt_file": None}, 2, "the look of the style {style} is not known"),
        ({"style": "nowhere.safetensors"}, 1, "LoRA file not found: nowhere.safetensors"),
        ({"style": "{style}:0.8"}, 2, "{style}:0.8 has a weight, but tune finds the weights"),
        ({"acceleration": "{style}"}, 2, "--acceleration {style} is not known as an acceleration"),
        ({"grid": "0.6,a"}, 2, "--grid 0.6,a: 'a' is not a weight above 0"),
        ({"images": 4}, 2, "--images 4: input should be greater than or equal to 8"),
    ],
)
def test_bad_input_gets_one_line(fewstep, config, draws, options, code, message):
    wish = config()
    given = {"style": wish.style, "acceleration": wish.acceleration, "model": wish.model, "reference": wish.reference,
             "prompts": wish.prompt_file, "out": wish.out}  # fmt: skip
    options = {("prompts" if key == "prompt_file" else key): value for key, value in options.items()}
    filled = {k: v.format(style=wish.style) if isinstance(v, str) else v for k, v in (given | options).items()}
    done = fewstep("tune", **{name: value for name, value in filled.items() if value is not None})
    assert (done.code, done.out) == (code, "")
    assert done.error.startswith(message.format(style=wish.style))
    assert draws == []
    assert not wish.out.exists()


def test_a_comparison_is_not_replaced(fewstep, tmp_path):
    (tmp_path / "compare").mkdir()
    (tmp_path / "compare" / "table.json").write_text('{"protocol": {}, "rows": []}')
    done = fewstep("tune", style="noto-mono", out=tmp_path / "compare")
    assert (done.code, done.error) == (2, f"--out {tmp_path / 'compare'} holds something else than a tuning")
