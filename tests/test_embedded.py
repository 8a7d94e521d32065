"""The model that ships: found by its name, accelerated by itself, drawn by every way in."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline

from fewstep.assets import ACCELERATION, MODEL, STYLES, shipped_kit, shipped_lora, shipped_model
from fewstep.configs import Draw, build
from fewstep.configs.where import BF16_PSNR
from fewstep.data.sources import list_samples
from fewstep.lora.files import load_adapter
from fewstep.lora.layers import module_shapes
from fewstep.metrics.psnr import psnr
from fewstep.models.load import fast_dtype, load_model
from fewstep.session import Session
from tests.sessions import session


@pytest.fixture(scope="module")
def model():
    return load_model(MODEL)


def sampled(fewstep, tmp_path, *arguments, **options):
    done = fewstep("sample", *arguments, out=tmp_path, json=True, **options)
    assert done.code == 0, done.err
    return json.loads(done.out)["images"]


def test_it_plugs_its_acceleration_in_by_itself(fewstep, tmp_path):
    (image,) = sampled(fewstep, tmp_path, "a red apple")
    assert [lora["file"] for lora in image["lora"]] == [ACCELERATION]
    assert (image["solver"], image["steps"], image["nfe"], image["guidance_scale"]) == ("lcm", 4, 4, 1)
    assert (image["width"], image["height"]) == (128, 128)


def test_plain_solvers_draw_with_the_model_as_it_is(fewstep, tmp_path):
    (image,) = sampled(fewstep, tmp_path, "a red apple", solver="ddim", steps=2)
    assert image["lora"] == []
    assert image["guidance_scale"] == load_model(MODEL).recipe.guidance_scale > 1
    assert image["nfe"] == 4


@pytest.mark.parametrize(
    ("options", "loras"),
    [
        ({}, (ACCELERATION,)),
        ({"solver": "tcd"}, (ACCELERATION,)),
        ({"solver": "dpm-solver++"}, ()),
        ({"loras": ("noto-mono:0.8",)}, ("noto-mono",)),
        ({"loras": ()}, ()),
        ({"model": str(shipped_model(MODEL))}, ()),
    ],
)
def test_what_is_plugged_in_when(options, loras):
    with session(options.get("model", MODEL), options.get("loras")) as opened:
        opened.plan(build(Draw, prompts=("x",), solver=options.get("solver", "auto")))
        assert tuple(lora["file"] for lora in opened.loras) == loras


def test_pictures_in_the_precision_that_auto_takes_are_those_of_fp32(monkeypatch):
    prompts = ["a red fox", "a blue fish", "a green apple", "a rocket", "a slice of pizza", "an owl", "a black car"]
    monkeypatch.setattr("fewstep.engines.torch.fast_dtype", fast_dtype)  # which the other tests do without
    auto = "auto" if fast_dtype(torch.device("cpu")) == torch.bfloat16 else "bf16"
    drawn = {}
    for dtype in (auto, "fp32"):
        with Session(dtype=dtype, device="cpu") as opened:
            drawn[opened.engine.dtype] = torch.stack([picture.pixels for picture in opened.draw(prompts, count=2)])
    assert drawn.keys() == {"bf16", "fp32"}
    assert psnr(drawn["fp32"], drawn["bf16"]).median() >= BF16_PSNR
    assert psnr(drawn["fp32"], drawn["fp32"].roll(1, 0)).median() < BF16_PSNR / 2  # what other pictures have


def test_styles_add_to_the_acceleration(fewstep, tmp_path):
    loras = [f"{STYLES[0]}:0.8", ACCELERATION]
    (image,) = sampled(fewstep, tmp_path, "castle", "--lora", loras[0], "--lora", loras[1])
    assert [(lora["file"], lora["weight"]) for lora in image["lora"]] == [(STYLES[0], 0.8), (ACCELERATION, 1.0)]
    assert image["solver"] == "lcm"


@pytest.mark.parametrize("prompt", ["", "qwertz flumph 42", "猫が好き", "a " * 500, "🤖", "x\n\ty"])
def test_any_words_give_a_picture(fewstep, tmp_path, prompt):
    (image,) = sampled(fewstep, tmp_path, prompt, steps=1)
    assert image["prompt"] == prompt


@pytest.mark.parametrize("name", [ACCELERATION, *STYLES])
def test_its_loras_fit_it_and_say_how_they_were_made(model, name):
    adapter, recipe = load_adapter(shipped_lora(name), module_shapes(model.unet))
    assert set(adapter.modules) <= set(module_shapes(model.unet))
    assert recipe.base_sha256 == model.unet_sha256()
    assert recipe.family == model.family == "emoji"
    assert recipe.accelerates == (name == ACCELERATION)


def test_diffusers_draws_with_it_too():
    pipe = StableDiffusionPipeline.from_pretrained(shipped_model(MODEL), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("noto emoji of castle", num_inference_steps=2, guidance_scale=4.0, output_type="np",
                 generator=torch.Generator().manual_seed(0)).images[0]  # fmt: skip
    assert image.shape == (128, 128, 3)


def test_the_kits_drawings_are_data():
    samples = list_samples(shipped_kit() / "drawings").samples
    assert 100 <= len(samples) <= 1000
    assert len({sample.captions for sample in samples}) == len(samples)
