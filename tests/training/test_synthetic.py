"""distill --synthetic: the pictures are those that the model draws, once; what they are made of is in the recipe."""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import fewstep as package
from fewstep.configs import DistillConfig, build
from fewstep.data.cache import index
from fewstep.data.prompts import OF
from fewstep.errors import FewstepError, UsageError
from fewstep.lora.files import open_lora
from fewstep.models.load import load_model
from fewstep.models.model import Model
from fewstep.session import Session
from fewstep.training import synthetic
from fewstep.training.methods import METHODS
from fewstep.training.methods.method import SYNTHETIC
from fewstep.training.run import distill
from fewstep.training.synthetic import default_captions, synthetic_pictures, wishes_of

CAPTIONS = ["a cat", "red dog", "a fish", "blue house", "the drawing", "a dog"]
TINY = ["--rank", "2", "--steps", "2", "--batch-size", "2", "--log-every", "1", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own; four pictures are drawn together."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(synthetic, "MOST_AT_ONCE", 4)


@pytest.fixture
def model(tiny_model_folder: Path) -> Model:
    return load_model(str(tiny_model_folder))


class Calls:
    """The rows that a model's network was evaluated with, and a call at which it is interrupted."""

    def __init__(self, model: Model) -> None:
        self.rows, self.stop_after = 0, 10**9
        model.unet.register_forward_pre_hook(self._count)

    def _count(self, unet: Any, inputs: tuple[Tensor, ...]) -> None:
        if self.rows >= self.stop_after:
            raise KeyboardInterrupt
        self.rows += len(inputs[0])


@pytest.fixture
def calls(model: Model) -> Calls:
    return Calls(model)


def config(**values: object) -> DistillConfig:
    common = {"model": "m", "out": "o", "synthetic": True, "images": 6, "synthetic_steps": 3, "seed": 5}
    return build(DistillConfig, **(common | values))


def latents(model: Model, captions: list[str] = CAPTIONS, **values: object) -> Tensor:
    encoded = synthetic_pictures(config(**values), model, captions)
    return encoded.latents(range(len(encoded)))


ROWS = 6 * 3 * 2  # pictures, steps, branches of guidance


def test_the_pictures_are_those_that_sample_draws(model: Model, tiny_model_folder: Path) -> None:
    with Session(str(tiny_model_folder), []) as session:
        asked = {"solver": "dpm-solver++", "steps": 3, "guidance_scale": 3.0, "seed": 5, "batch_size": 4}
        expected = torch.stack([picture.pixels for picture in session.draw(CAPTIONS, **asked)])
    found = model.decode(latents(model, synthetic_guidance_scale=3))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_their_captions_are_embedded_as_those_of_images_are(model: Model) -> None:
    encoded = synthetic_pictures(config(), model, CAPTIONS)
    text = encoded.conditioning([5, 0]).text
    torch.testing.assert_close(text, model.embed([CAPTIONS[5], CAPTIONS[0]]).text, rtol=2e-3, atol=2e-3)


def test_captions_take_turns_and_every_picture_has_noise_of_its_own(model: Model) -> None:
    assert [wish.caption for wish in wishes_of(["a", "b"], 5, 7)] == ["a", "b", "a", "b", "a"]
    assert [wish.seed for wish in wishes_of(["a", "b"], 5, 7)] == [7, 8, 9, 10, 11]
    assert len(wishes_of(["a", "b"], None, 0)) == 1000
    assert len(wishes_of(["a"] * 1001, None, 0)) == 1001
    found = latents(model, ["a cat"], images=3)
    assert len({x.numpy().tobytes() for x in found}) == 3


def test_guidance_is_the_models_own_unless_it_is_given(model: Model) -> None:
    usual = latents(model)
    assert torch.equal(usual, latents(model, synthetic_guidance_scale=7.5))
    assert not torch.equal(usual, latents(model, synthetic_guidance_scale=1))


def test_the_second_time_nothing_is_drawn(model: Model, calls: Calls) -> None:
    first = latents(model)
    assert calls.rows == ROWS
    assert torch.equal(latents(model), first)
    assert calls.rows == ROWS


def test_what_a_killed_run_has_drawn_is_kept_and_the_bits_are_the_same(
    model: Model, calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = latents(model)
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "other"))
    calls.rows, calls.stop_after = 0, 4 * 3 * 2 + 4  # in the second of the last two pictures' steps
    with pytest.raises(KeyboardInterrupt):
        latents(model)
    assert len(list((tmp_path / "other" / "encoded").glob("drawn-*/*.safetensors"))) == 1
    calls.rows, calls.stop_after = 0, 10**9
    assert torch.equal(latents(model), whole)
    assert calls.rows == 2 * 3 * 2


def test_more_pictures_are_added_to_those_that_are_there(model: Model, calls: Calls) -> None:
    few = latents(model, images=4)
    assert torch.equal(latents(model, images=6)[:4], few)
    assert calls.rows == ROWS


def damaged(model: Model, tmp_path: Path) -> tuple[Model, dict[str, object]]:
    for path in (tmp_path / "cache" / "encoded").glob("*/*"):
        path.write_bytes(path.read_bytes()[:-10])
    return model, {}


def changed(file: str) -> Callable[[Model, Path], tuple[Model, dict[str, object]]]:
    """The model from a folder in which this file has another byte at its end."""

    def change(model: Model, tmp_path: Path) -> tuple[Model, dict[str, object]]:
        folder = Path(shutil.copytree(model.path, tmp_path / "other"))
        (folder / file).write_bytes((folder / file).read_bytes() + b"\n")
        return replace(model, path=folder), {}

    return change


def asked(**values: object) -> Callable[[Model, Path], tuple[Model, dict[str, object]]]:
    return lambda model, tmp_path: (model, values)


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (asked(), 0),
        (asked(out="elsewhere", k=50, rank=2, batch_size=1, psi="dpm-solver++", guidance_scale=2), 0),
        (asked(seed=6), 1),
        (asked(size=24), 1),
        (asked(synthetic_guidance_scale=3), 1),
        (asked(synthetic_steps=4), 4 / 3),
        (asked(precision="bf16"), 1),
        (asked(captions=[*CAPTIONS[:5], "a house"]), 1 / 3),  # the second batch
        (changed("vae/config.json"), 0),
        (changed("unet/config.json"), 1),
        (changed("text_encoder/config.json"), 1),
        (changed("scheduler/scheduler_config.json"), 1),
        (damaged, 1),
    ],
)
def test_a_change_is_drawn_anew(
    model: Model, calls: Calls, tmp_path: Path, change: Callable[..., Any], again: float
) -> None:
    latents(model)
    calls.rows = 0
    other, values = change(model, tmp_path)
    latents(other, **values)
    assert calls.rows == ROWS * again


def test_half_precision_draws_nearly_the_same(model: Model) -> None:
    """Of a LoRA run in converted weights, of a full one beside the weights, which stay as they are."""
    whole = latents(model, synthetic_guidance_scale=1)
    full = latents(model, synthetic_guidance_scale=1, precision="bf16", full=True)
    assert model.unet.dtype == torch.float32
    half = latents(model, synthetic_guidance_scale=1, precision="bf16")
    assert model.unet.dtype == torch.bfloat16
    for other in (full, half):
        assert other.dtype == torch.float32
        assert 0 < float((other - whole).norm() / whole.norm()) < 0.05


def test_sdxl_has_its_sizes_and_pooled_text(tiny_sdxl_folder: Path) -> None:
    encoded = synthetic_pictures(config(size=24), load_model(str(tiny_sdxl_folder)), CAPTIONS)
    conditioning = encoded.conditioning([0, 5])
    assert conditioning.sizes is not None
    assert conditioning.sizes.tolist() == [[24, 24, 0, 0, 24, 24]] * 2
    assert conditioning.pooled is not None
    assert conditioning.pooled.shape == (2, 24)
    assert encoded.latents([0, 5]).shape == (2, 4, 12, 12)


def test_a_large_picture_is_drawn_alone(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = latents(model)
    monkeypatch.setattr(synthetic, "LATENT_PIXELS", 2 * 64)
    found = latents(model, seed=5, synthetic_steps=3, precision="fp32", size=18)  # 81 latent pixels: one at a time
    assert found.shape == (6, 4, 9, 9)
    assert whole.shape == (6, 4, 8, 8)


def test_processes_draw_a_share_each(
    model: Model, calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls.rows = latents(model), 0
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "other"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(index, "PATIENCE_S", 0)
    with pytest.raises(FewstepError, match=r"^not all of the 2 processes write to "):
        latents(model)
    assert calls.rows == 2 * 3 * 2  # the second batch
    monkeypatch.setenv("RANK", "0")
    assert torch.equal(latents(model), whole)
    assert calls.rows == ROWS


def test_a_note_says_first_how_long_it_takes(
    model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    latents(model)
    assert capsys.readouterr().err == ""  # few network calls take no time
    monkeypatch.setattr(synthetic, "FORECAST", 6)
    latents(model, seed=6)
    said = capsys.readouterr().err
    beginning = r"note: the model draws 6 pictures to train on, in 3 steps at guidance 7\.5: about \d+ seconds?"
    assert re.match(beginning, said)
    latents(model, seed=6)
    assert capsys.readouterr().err == ""


# --- captions -----------------------------------------------------------------------------------------------


def test_emoji_has_captions_of_its_own_with_and_without_a_style(model: Model) -> None:
    captions = default_captions(load_model("emoji"))
    assert captions == default_captions(load_model("emoji"))
    styled = sum(OF in caption for caption in captions[:100])
    assert 10 < styled < 50
    assert len(captions) == 1056 + 320
    assert "a photo of" in " ".join(default_captions(model))


# --- runs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(CAPTIONS))
    return file


def run(fewstep: Callable[..., Any], model: Path, out: Path, *options: object, **more: object) -> Any:
    return fewstep("distill", *TINY, "--synthetic", "--images", 5, *options, model=model, out=out, **more)


def test_a_second_run_gives_the_same_bits_and_says_what_it_learnt_from(
    fewstep: Any, tiny_model_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    loras = []
    for name in ("one", "two"):
        done = run(fewstep, tiny_model_folder, tmp_path / name, "--synthetic-steps", 3, prompts=prompts)
        assert done.code == 0, done.err
        assert f'fewstep sample "{CAPTIONS[0]}"' in done.err
        loras.append(tmp_path / name / "lora.safetensors")
    one, two = map(load_file, loras)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    recipe = open_lora(loras[0]).recipe
    assert recipe is not None
    assert recipe.training["samples"] == 5
    made = {"solver": "dpm-solver++", "steps": 3, "guidance_scale": 7.5, "precision": "fp32", "prompts": "prompts.txt"}
    assert recipe.training["synthetic"] == made
    words = (
        "5 pictures that its teacher drew, in 3 steps of dpm-solver++ at guidance 7.5, after the prompts prompts.txt;"
        " no images"
    )
    assert words in fewstep("inspect", loras[0]).out
    assert json.loads(fewstep("inspect", loras[0], "--json").out)["sampling"]["learnt_from"] == words
    done = fewstep("export", model=tiny_model_folder, lora=loras[0], out=tmp_path / "exported")
    assert done.code == 0, done.err
    card = (tmp_path / "exported" / "README.md").read_text()
    assert f"\nlora.safetensors learnt from {words}.\n" in card


def test_a_resumed_run_is_bit_equal(fewstep: Any, tiny_model_folder: Path, prompts: Path, tmp_path: Path) -> None:
    assert run(fewstep, tiny_model_folder, tmp_path / "whole", prompts=prompts).code == 0
    common = ["distill", "--rank", 2, "--batch-size", 2, "--device", "cpu", "--synthetic", "--images", 5]
    typed = {"model": tiny_model_folder, "out": tmp_path / "parts"}
    assert fewstep(*common, steps=1, prompts=os.path.relpath(prompts), **typed).code == 0
    done = fewstep(*common, "--resume", steps=2, prompts=prompts, **typed)
    assert done.code == 0, done.err
    one, two = (load_file(tmp_path / name / "lora.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("method", [name for name, kind in METHODS.items() if kind.reads >= SYNTHETIC])
def test_every_method_with_a_teacher_takes_them(
    method: str, tiny_model_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    lora = package.distill(
        model=str(tiny_model_folder),
        out=tmp_path / "run",
        synthetic=True,
        images=3,
        synthetic_steps=1,
        prompt_file=prompts,
        method=method,
        drop_captions=0.5,
        rank=2,
        train_steps=1,
        batch_size=2,
        device="cpu",
    )
    recipe = open_lora(lora).recipe
    assert recipe is not None
    assert "synthetic" in recipe.training


def test_general_captions_are_the_default(tiny_model_folder: Path, tmp_path: Path) -> None:
    done = distill(
        config(model=str(tiny_model_folder), out=tmp_path / "run", images=2, train_steps=1, rank=2, device="cpu")
    )
    recipe = open_lora(done.result).recipe
    assert recipe is not None
    assert recipe.training["synthetic"]["prompts"] == "general"
    assert done.caption == default_captions(load_model(str(tiny_model_folder)))[0]


# --- bad input ----------------------------------------------------------------------------------------------


def test_options_that_do_not_go_together(
    fewstep: Any, tiny_model_folder: Path, tiny_data_folder: Path, tmp_path: Path
) -> None:
    common = {"model": tiny_model_folder, "out": tmp_path / "run"}

    def refused(*options: object, command: str = "distill", code: int = 2) -> tuple[str, str]:
        done = fewstep(command, *TINY, *options, **common)
        assert (done.code, done.out) == (code, "")
        assert not (tmp_path / "run").exists()
        assert not (tmp_path / "cache").exists()
        return done.error, done.hint

    error, hint = refused()
    assert error == "nothing to train on: --data is missing"
    assert "add --synthetic" in hint
    assert refused("--synthetic", "--data", tiny_data_folder)[0] == "--synthetic and --data exclude each other"
    assert refused("--data", tiny_data_folder, "--images", 5)[0] == "--images needs --synthetic"
    assert refused("--data", tiny_data_folder, "--prompts", "general")[0] == "--prompts needs --synthetic"
    error, hint = refused("--synthetic", "--method", "lcf")
    assert error == "--method lcf teaches the look of real images, and --synthetic has none"
    assert hint == "give it images with --data, or use --method lcd"
    error, hint = refused("--data", tiny_data_folder, "--synthetic", command="finetune")
    assert error == "unknown option: --synthetic"
    assert "finetune teaches what real images show" in hint
    error, hint = refused("--synthetic", "--prompts", tmp_path / "none.txt", code=1)
    assert error.startswith(f"cannot read the prompts in {tmp_path / 'none.txt'}")
    assert "general" in hint
    (tmp_path / "empty.txt").write_text("\n")
    assert refused("--synthetic", "--prompts", tmp_path / "empty.txt", code=1)[0].startswith("there are no prompts in")
    assert refused("--synthetic", "--size", 17)[0] == "--size 17 is not a multiple of 2"
    if not torch.cuda.is_available():
        assert refused("--synthetic", "--precision", "fp16")[0] == "--precision fp16 needs a GPU to train"


def test_a_model_for_inpainting_is_refused(model: Model) -> None:
    model.unet.config.in_channels = 9
    with pytest.raises(UsageError, match=r"^synthetic: .* is for inpainting, .*\n\nhint: give it images with data$"):
        latents(model)


def test_a_model_that_takes_no_text_draws_without_captions(tiny_pixels_folder: Path) -> None:
    with Session(str(tiny_pixels_folder), [], engine="torch", dtype="fp32") as session:
        asked = {"solver": "dpm-solver++", "steps": 3, "seed": 5, "count": 6, "batch_size": 6}
        expected = torch.stack([picture.pixels for picture in session.draw("", **asked)])
    model = load_model(str(tiny_pixels_folder))
    torch.testing.assert_close(model.decode(latents(model)), expected, rtol=0, atol=1e-5)


def test_a_picture_that_is_not_finite_is_named(model: Model, tmp_path: Path) -> None:
    model.unet.conv_in.weight.fill_(float("nan"))
    with pytest.raises(
        FewstepError, match=r"^a picture that the teacher drew is not finite\n\nhint: use precision fp32"
    ):
        latents(model)
    assert not list((tmp_path / "cache" / "encoded").rglob("*.safetensors"))
