"""Hub names wherever a model or a LoRA is named, and licences carried into what is made."""

import json

import pytest
import torch

from fewstep.configs import FinetuneConfig, build
from fewstep.errors import FewstepError
from fewstep.evaluate.measure import load_judge
from fewstep.lora.files import load_adapter
from fewstep.lora.layers import initial, module_shapes, target_shapes
from fewstep.lora.low_rank import Adapter
from fewstep.lora.recipe import Recipe, to_metadata
from fewstep.lora.writing import save_adapter
from fewstep.models.load import load_model
from fewstep.training.adapt import describe
from tests.hub.stand_in import repository_of
from tests.tiny import tiny_clip, tiny_unet


@pytest.fixture
def shelf(hub, tiny_model_folder, tmp_path):
    """A tiny model and a LoRA for it on the hub."""
    modules = initial(target_shapes(tiny_unet()), 2, 0)
    save_adapter(tmp_path / "lora" / "lora.safetensors", Adapter(modules), Recipe(method="lcd", solver="lcm", steps=2))
    hub.repositories["tiny/model"] = repository_of(tiny_model_folder)
    hub.repositories["tiny/model"].files["README.md"] = b"---\nlicense: openrail++\n---\n"
    hub.repositories["tiny/lora"] = repository_of(tmp_path / "lora")
    return hub


def test_a_model_and_a_lora_of_the_hub_draw(fewstep, shelf, tmp_path):
    done = fewstep(
        "sample", "a cat", "--json", model="tiny/model", lora="tiny/lora@main:0.5", device="cpu", out=tmp_path / "out"
    )
    assert done.code == 0, done.err
    [image] = json.loads(done.out)["images"]
    assert (image["model"], image["solver"]) == ("tiny/model", "lcm")
    assert (image["lora"][0]["file"], image["lora"][0]["weight"]) == ("tiny/lora@main", 0.5)


def test_merge_and_inspect_take_them_too(fewstep, shelf, tmp_path):
    out = tmp_path / "sum.safetensors"
    done = fewstep("merge", "tiny/lora/lora.safetensors:2", "--model", "tiny/model", "--out", out)
    assert done.code == 0, done.err
    assert out.is_file()
    done = fewstep("inspect", "tiny/lora", "--model", "tiny/model")
    assert done.code == 0, done.err


def test_clip_comes_from_the_hub(hub, tmp_path, monkeypatch):
    hub.repositories["tiny/clip"] = repository_of(tiny_clip(tmp_path / "clip"))
    hub.repositories["tiny/clip"].files["pytorch_model.bin"] = b"a pickle"
    judge = load_judge("tiny/clip", ["a cat"], torch.device("cpu"))
    assert judge.network.label.startswith("CLIP tiny/clip, ")
    assert not any("pytorch_model.bin" in asked.path for asked in hub.asked)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FewstepError, match=r"^cannot reach the hub at http://127.0.0.1:9 for openai/clip\n\nhint: "):
        load_judge("openai/clip", ["a cat"], torch.device("cpu"))


def test_a_refusal_is_one_line(fewstep, shelf, tmp_path):
    done = fewstep("sample", "a cat", model="tiny/none", out=tmp_path)
    assert (done.code, done.error) == (1, "the hub has no tiny/none (404)")
    done = fewstep("sample", "a cat", model="tiny/model", lora="tiny/none", out=tmp_path)
    assert (done.code, done.error) == (1, "the hub has no tiny/none (404)")


def test_the_licence_of_a_model_goes_into_what_is_trained_on_it(shelf, tmp_path):
    model = load_model("tiny/model")
    config = build(FinetuneConfig, model="tiny/model", data="x", out="x")
    recipe = describe(model, config, "denoising", 1)
    assert (recipe.licence, recipe.base_model) == ("OpenRAIL++-M", "tiny/model")
    assert to_metadata(recipe)["license"] == "OpenRAIL++-M"
    assert "license" not in to_metadata(Recipe(method="denoising"))
    file = tmp_path / "trained.safetensors"
    save_adapter(file, Adapter(initial(target_shapes(model.unet), 1, 0)), recipe, torch.float16)
    adapter, read = load_adapter(file, module_shapes(model.unet))
    assert (adapter.metadata["license"], read) == ("OpenRAIL++-M", recipe)


def test_merging_keeps_all_licences(fewstep, shelf, tmp_path):
    for name, licence in (("a", "OpenRAIL++-M"), ("b", "Apache-2.0")):
        modules = initial(target_shapes(tiny_unet()), 1, 0)
        save_adapter(tmp_path / f"{name}.safetensors", Adapter(modules), Recipe(method="denoising", licence=licence))
    out = tmp_path / "sum.safetensors"
    done = fewstep("merge", *(tmp_path / f"{n}.safetensors" for n in "ab"), "--model", "tiny/model", "--out", out)
    assert done.code == 0, done.err
    adapter, recipe = load_adapter(out, module_shapes(tiny_unet()))
    assert adapter.metadata["license"] == "OpenRAIL++-M; Apache-2.0"
    assert recipe.licence == ""
