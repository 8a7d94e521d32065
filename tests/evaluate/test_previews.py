"""Previews: the same training with and without them, scores that say what they are of, and the best that is kept."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.configs import DistillConfig, build
from fewstep.data.prompts import Prompt
from fewstep.errors import FewstepError
from fewstep.evaluate import previews
from fewstep.evaluate.previews import is_best, spread
from fewstep.events import Event, Preview, telling
from fewstep.metrics.tone import tone
from fewstep.sheets import ScoredSheet
from fewstep.training.progress import TrainingProgress

TINY = ["--rank", "2", "--batch-size", "2", "--log-every", "1", "--device", "cpu"]
FACTS = {"step", "measure", "best"}
RATIOS = {"sharpness", "contrast", "saturation"}


class Colours(nn.Module):
    """Stands in for Inception: features are the mean of each colour."""

    label, sha256, dim = "colours", "0", 3

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.mean((2, 3)).detach()


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(previews, "load_inception", lambda device: Colours())


def lines(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "quality.jsonl").read_text().splitlines()]


def test_a_run_with_previews_is_bit_equal_to_one_without(
    fewstep, colours, tiny_model_folder, tiny_data_folder, tmp_path
):
    common = {"model": tiny_model_folder, "data": tiny_data_folder, "steps": 3}
    plain, seen = tmp_path / "plain", tmp_path / "seen"
    for out, options in ((plain, []), (seen, ["--preview-every", 2, "--preview-images", 6])):
        done = fewstep("distill", *TINY, *options, out=out, **common)
        assert done.code == 0, done.err
    assert (plain / "lora.safetensors").read_bytes() == (seen / "lora.safetensors").read_bytes()
    states = [load_file(out / "checkpoints" / "step-00000003.safetensors") for out in (plain, seen)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(x, states[1][name]) for name, x in states[0].items())
    found = lines(seen)
    assert [line["step"] for line in found] == [2, 3]
    names = {f"{name}_{steps}" for name in (*RATIOS, "kid_t", "kid_t_error") for steps in (1, 2, 4)}
    assert all(line.keys() == names | FACTS for line in found)
    assert all(line["measure"] == "kid_t_4" for line in found)
    best = min(found, key=lambda line: line["kid_t_4"])
    assert best["best"]
    if best["step"] == 3:
        assert load_file(seen / "best.safetensors").keys() == load_file(seen / "lora.safetensors").keys()
    for step in (2, 3):
        with Image.open(seen / "previews" / f"step-{step:08d}.png") as sheet:
            assert sheet.height > sheet.width // 4
    assert not [path for path in seen.iterdir() if path.name.startswith(".")]


def test_a_resumed_run_previews_what_a_whole_one_does(fewstep, colours, tiny_model_folder, tiny_data_folder, tmp_path):
    common = {"model": tiny_model_folder, "data": tiny_data_folder, "preview_every": 1, "preview_images": 4}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert fewstep("distill", *TINY, out=whole, steps=2, **common).code == 0
    assert fewstep("distill", *TINY, out=parts, steps=1, **common).code == 0
    with (parts / "quality.jsonl").open("a") as file:
        file.write('{"step": 2, "kid_t_4": -9}\n{"step": 3, "ki')  # of a run that was killed later
    assert fewstep("distill", *TINY, "--resume", out=parts, steps=2, **common).code == 0
    assert lines(parts) == lines(whole)
    assert (parts / "best.safetensors").read_bytes() == (whole / "best.safetensors").read_bytes()


def test_without_the_networks_weights_there_are_pictures_and_a_note(
    fewstep, monkeypatch, tiny_model_folder, tiny_data_folder, tmp_path
):
    def missing(device: object) -> Colours:
        raise FewstepError("the package 'x' is not installed", "pip install x")

    monkeypatch.setattr(previews, "load_inception", missing)
    done = fewstep("distill", *TINY, model=tiny_model_folder, data=tiny_data_folder, out=tmp_path / "run", steps=1,
                   preview_every=1, preview_images=4)  # fmt: skip
    assert done.code == 0, done.err
    [note] = [line for line in done.err.splitlines() if "previews" in line]
    assert note.endswith("previews are pictures without all scores: the package 'x' is not installed; pip install x")
    [line] = lines(tmp_path / "run")
    assert (line["measure"], line["best"]) == (None, False)
    assert {name.rpartition("_")[0] for name in line.keys() - FACTS} == RATIOS
    assert not (tmp_path / "run" / "best.safetensors").exists()


def test_a_preview_that_fails_does_not_stop_the_training(
    fewstep, monkeypatch, tiny_model_folder, tiny_data_folder, tmp_path
):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(previews, "pixels_of", full)
    done = fewstep("finetune", *TINY, model=tiny_model_folder, data=tiny_data_folder, out=tmp_path / "run", steps=1,
                   preview_every=1)  # fmt: skip
    assert done.code == 0, done.err
    assert "note: no preview after 1 step: no memory left" in done.err
    assert (tmp_path / "run" / "lora.safetensors").exists()


def test_a_style_is_drawn_in_the_models_own_steps_and_a_whole_model_as_it_is(
    fewstep, colours, tiny_model_folder, tiny_data_folder, tmp_path
):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\n")
    common = {"model": tiny_model_folder, "data": tiny_data_folder, "steps": 1, "preview_every": 1, "preview_images": 2}
    done = fewstep("finetune", *TINY, "--full", out=tmp_path / "style", preview_prompts=prompts, **common)
    assert done.code == 0, done.err
    assert lines(tmp_path / "style") == [{"step": 1, "measure": None, "best": False}]
    assert (tmp_path / "style" / "previews" / "step-00000001.png").exists()


def test_prompts_that_cannot_be_read_stop_a_run_before_it_begins(
    fewstep, tiny_model_folder, tiny_data_folder, tmp_path
):
    done = fewstep("distill", *TINY, model=tiny_model_folder, data=tiny_data_folder, out=tmp_path / "run",
                   preview_every=1, preview_prompts=tmp_path / "none.txt")  # fmt: skip
    assert done.code != 0
    assert "none.txt" in done.error
    assert not (tmp_path / "run").exists()


def test_the_best_is_the_first_of_the_best_values(tmp_path):
    path = tmp_path / "quality.jsonl"
    assert is_best(5.0, "kid_t_4", path)
    path.write_text('{"step": 1, "kid_t_4": 0.2, "agreement_4": 0.5}\n{"step": 2, "kid_t_4": 0.1}\n{"st')
    assert is_best(0.05, "kid_t_4", path)
    assert not is_best(0.1, "kid_t_4", path)
    assert not is_best(0.15, "kid_t_4", path)
    assert is_best(0.6, "agreement_4", path)
    assert not is_best(0.5, "agreement_4", path)
    assert is_best(31.0, "clip_score_4", path)


def test_captions_are_spread_over_the_data_and_named_once():
    prompts = [Prompt(f"{i}") for i in range(100)]
    assert [prompt.text for prompt in spread(prompts, 4)] == ["0", "25", "50", "75"]
    assert spread([Prompt("a"), Prompt("b"), Prompt("a")], 4) == (Prompt("a"), Prompt("b"))


def test_tone_is_larger_where_contrast_and_colours_are():
    grey = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).expand(2, 3, 8, 8) - 0.5
    assert tone([grey]).saturation == 0
    assert tone([2 * grey]).contrast == pytest.approx(2 * tone([grey]).contrast)
    red = torch.tensor([1.0, -1, -1]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    assert tone([red]) == pytest.approx((0, 2), abs=1e-6)
    assert tone([red, red, red]) == pytest.approx(tone([red]))


@pytest.mark.parametrize(("tracker", "shape"), [("tensorboard", (1, 4, 6, 3)), ("wandb", None), ("mlflow", None)])
def test_a_preview_goes_to_the_sink_and_to_the_tracker(tracker, shape, tmp_path):
    logged = {}
    own = SimpleNamespace(log_images=lambda values, step, **options: logged.update(values, step=step, **options))
    accelerator = SimpleNamespace(
        num_processes=1,
        is_main_process=True,
        log=lambda values, step: logged.update(values),
        get_tracker=lambda name: own if name != "mlflow" else object(),
    )
    config = build(DistillConfig, model="m", data="d", out=tmp_path, tracker=tracker, train_steps=9)
    image, events = Image.new("RGB", (6, 4)), list[Event]()
    with telling(events.append):
        TrainingProgress(config, 3, accelerator).show(3, ScoredSheet(image, {"kid_t_4": 0.5}))
    [preview] = [event for event in events if isinstance(event, Preview)]
    assert (preview.step, preview.steps, preview.images()) == (3, 9, [image])
    assert logged.pop("kid_t_4") == 0.5
    if shape:
        assert np.asarray(logged.pop("previews")).shape == shape
        assert logged == {"step": 3, "dataformats": "NHWC"}
    else:
        assert logged == ({"previews": [image], "step": 3} if tracker == "wandb" else {})
