"""Broken model folders of every kind: one line that names the file and the value, and a hint, before anything is built.

What a folder may say and no Stable Diffusion model does is refused; what diffusers reads is read.
"""

import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel
from safetensors.torch import load_file, save_file

from fewstep.errors import FewstepError
from fewstep.images import image_size
from fewstep.models.load import load_clip, load_controlnet, load_model
from tests.tiny import tiny_clip, tiny_sdxl

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
CONFIGS = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer_config.json",
    "fewstep.json",
)
RECIPE = {"method": "lcd", "solver": "lcm", "steps": 4, "k": 20, "guidance_scale": 1.0}


@pytest.fixture
def model(tiny_model_folder, tmp_path):
    """The model by links, a recipe beside it: a file is replaced, never written to."""
    folder = Path(shutil.copytree(tiny_model_folder, tmp_path / "model", copy_function=os.link))
    (folder / "fewstep.json").write_text(json.dumps(RECIPE))
    return folder


def replace(path: Path, content: bytes | str) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def change(path: Path, **values: object) -> None:
    replace(path, json.dumps(json.loads(path.read_text()) | values))


def rewrite(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    path.unlink()
    save_file(tensors, path, {"format": "pt"})


def refusal(folder: Path) -> FewstepError:
    """The one complaint, of one line and a hint, that loading ends in, before it makes anything huge."""
    begun = time.process_time()
    with pytest.raises(FewstepError) as caught:
        load_model(str(folder))
    assert time.process_time() - begun < 20
    error = caught.value
    assert "\n" not in error.message
    assert len(error.message) < 500
    assert error.hint
    return error


# --- files that are no JSON objects ---------------------------------------------------------------------------

SPOILT = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "a list": lambda text: "[]",
    "null": lambda text: "null",
    "words": lambda text: '"a config"',
    "no UTF-8": lambda text: b"\xff\xfe\0\0",
    "nested": lambda text: '{"a": ' + "[" * 100_000,
    "digits": lambda text: text.rstrip().removesuffix("}") + ', "x": ' + "9" * 6000 + "}",
    "a page": lambda text: "<!doctype html><html>404",
    "a pointer": lambda text: "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
}


@pytest.mark.parametrize("file", CONFIGS)
def test_what_is_no_json_object(model, file):
    path = model / file
    text = path.read_text()
    for name, spoil in SPOILT.items():
        replace(path, spoil(text))
        error = refusal(model)
        assert str(path) in error.message, (name, error.message)
        assert "onnect" not in error.message


# --- values ---------------------------------------------------------------------------------------------------

VALUES = [  # file, key, values that cannot be
    ("unet/config.json", "layers_per_block", [0, -1, 1_000_000, 10**9, 10**400, None, "2", [2], [], [10**6, 1], 0.5]),
    ("unet/config.json", "transformer_layers_per_block", [-1, 1_000_000, [1, 10**6], [[1], [10**6, 1]], "1", True]),
    ("unet/config.json", "block_out_channels", [0, [], [0, 0], [16, -1], [16, 10**9], 16, [16] * 100, [12, 32], "x"]),
    ("unet/config.json", "attention_head_dim", [0, -1, [0, 2], [], "2", float("nan"), 10**9, None]),
    ("unet/config.json", "norm_num_groups", [0, -1, 3, 10**9, "8", 0.5, []]),
    ("unet/config.json", "norm_eps", [0, -1e-5, float("nan"), float("inf"), "1e-5", None, [1e-5]]),
    ("unet/config.json", "cross_attention_dim", [0, -16, 24, None, "16", [16, 24], {}]),
    ("unet/config.json", "sample_size", [0, -8, 10**6, "8", [8], [8, 8, 8], [], [8, 0], [8, None], 0.5, True]),
    ("unet/config.json", "in_channels", [0, 3, 9, "4", None, 4.0]),
    ("unet/config.json", "out_channels", [0, 3, 8, "4", None]),
    ("unet/config.json", "dropout", [float("nan"), 2, -1, "0", None]),
    ("unet/config.json", "downsample_padding", [None, 0.5, True, 3, -1]),
    ("unet/config.json", "act_fn", [0, [], None, "no such function"]),
    ("unet/config.json", "mid_block_type", [0, "NoBlock2D", None]),
    ("unet/config.json", "down_block_types", [None, [], ["DownBlock2D"], [0, 0], "DownBlock2D", ["NoBlock2D"] * 2]),
    ("unet/config.json", "freq_shift", [[], None, "0", float("nan")]),
    ("unet/config.json", "num_class_embeds", [0, 10, "10"]),
    ("unet/config.json", "class_embed_type", ["timestep", "projection", 0]),
    ("unet/config.json", "addition_embed_type", ["text_time", "image", "x", 3]),
    ("unet/config.json", "encoder_hid_dim_type", ["image_proj", "x", 3]),
    ("unet/config.json", "use_linear_projection", [1, "no", []]),
    ("unet/config.json", "_class_name", ["SD3Transformer2DModel", "AutoencoderKL", 3, None, ["UNet2DConditionModel"]]),
    ("vae/config.json", "scaling_factor", [0, -0.18, float("nan"), float("inf"), None, "0.18215", [0.18], 10**400]),
    ("vae/config.json", "shift_factor", [float("nan"), float("-inf"), "0", [0.0]]),
    ("vae/config.json", "latent_channels", [0, -4, 8, 10**9, None, "4"]),
    ("vae/config.json", "norm_num_groups", [0, -1, 3, None]),
    ("vae/config.json", "layers_per_block", [0, 1_000_000, -1, None]),
    ("vae/config.json", "in_channels", [1, 4, None]),
    ("vae/config.json", "sample_size", [0, "16", {}]),
    ("text_encoder/config.json", "num_attention_heads", [0, -2, 3, 10**9, [], "2", None]),
    ("text_encoder/config.json", "num_hidden_layers", [0, -1, 3, 1_000_000, 10**9, None, 0.5, True]),
    ("text_encoder/config.json", "hidden_size", [0, -16, 24, 10**9, [], None]),
    ("text_encoder/config.json", "vocab_size", [0, 3, 10**9, {}, float("inf")]),
    ("text_encoder/config.json", "max_position_embeddings", [0, -1, 10**9, float("inf"), {}, 15]),
    ("text_encoder/config.json", "hidden_act", [0, [], None, "no such function"]),
    ("text_encoder/config.json", "layer_norm_eps", [-1, "text", float("nan")]),
    ("text_encoder/config.json", "eos_token_id", [{}, float("inf"), "x", None, []]),
    ("text_encoder/config.json", "model_type", ["t5", 3, "clip_vision_model"]),
    ("scheduler/scheduler_config.json", "num_train_timesteps", [0, 1, -1, 10**9, 10**400, None, "1000", 0.5, []]),
    ("scheduler/scheduler_config.json", "beta_start", [-1, 2, float("nan"), None, "small", [], {}]),
    ("scheduler/scheduler_config.json", "beta_end", [-1, 2, float("inf"), None, True]),
    ("scheduler/scheduler_config.json", "beta_schedule", ["sinus", None, 3, []]),
    ("scheduler/scheduler_config.json", "trained_betas", [0, [], [0.1], [0.1, "x"], [0.1, float("nan")], "x", {}]),
    ("scheduler/scheduler_config.json", "prediction_type", ["flow", None, 3, []]),
    ("scheduler/scheduler_config.json", "rescale_betas_zero_snr", [1, "no", []]),
    ("tokenizer/tokenizer_config.json", "model_max_length", [0, -1, 1, float("nan"), None, "16", {}, []]),
    ("model_index.json", "unet", [3, [], ["diffusers"], ["diffusers", 3], ["diffusers", "FluxTransformer2DModel"], {}]),
    ("model_index.json", "text_encoder", ["x", ["transformers", "T5EncoderModel"], [None, 1]]),
    ("model_index.json", "transformer", [["diffusers", "SD3Transformer2DModel"]]),
    ("model_index.json", "_class_name", [3, None, [], {}]),
    ("model_index.json", "force_zeros_for_empty_prompt", [3, "no"]),
    ("fewstep.json", "k", [0, -20, 10**6, 0.5, "many", float("nan"), []]),
    ("fewstep.json", "steps", [-4, 0, 10**6, "many", float("inf"), [4]]),
    ("fewstep.json", "guidance_scale", [float("nan"), float("inf"), -1, 1000, "much", [1]]),
    ("fewstep.json", "eta", [float("nan"), -1, 2, "x"]),
    ("fewstep.json", "gamma", [float("nan"), -1, 2, "x"]),
    ("fewstep.json", "teacher_guidance_scale", [3, [1], [1, float("nan")], ["a", "b"]]),
    ("fewstep.json", "method", [3, None, []]),
    ("fewstep.json", "solver", ["bogus", 3, None]),
    ("fewstep.json", "grid", ["bogus", 3]),
]  # fmt: skip


@pytest.mark.parametrize(("file", "key", "values"), VALUES, ids=[f"{file}-{key}" for file, key, _ in VALUES])
def test_values_that_cannot_be(model, file, key, values):
    path, text = model / file, (model / file).read_text()
    for value in values:
        replace(path, text)
        change(path, **{key: value})
        error = refusal(model)
        assert str(path) in error.message or "/vae/config.json" in error.message, (value, error.message)


def test_a_refusal_says_file_key_and_value(model):
    change(model / "vae" / "config.json", scaling_factor=0)
    error = refusal(model)
    assert error.message == f"{model}/vae/config.json: scaling_factor is 0, not a number above 0"
    change(model / "vae" / "config.json", scaling_factor=0.18215)
    change(model / "fewstep.json", k=0)
    error = refusal(model)
    assert error.message.startswith(f"the sampling recipe {model}/fewstep.json is damaged: k is 0 (")
    change(model / "fewstep.json", k=20)
    change(model / "unet" / "config.json", layers_per_block=1_000_000)
    error = refusal(model)
    assert error.message.startswith(
        f"{model}/unet/config.json asks for at least 4000000 layers, but its weights are only "
    )


def test_what_diffusers_reads_is_read(model):
    path, text = model / "unet" / "config.json", (model / "unet" / "config.json").read_text()
    for value, height_and_width in (([8, 8], (16, 16)), ([4, 8], (8, 16)), (None, (16, 16))):
        replace(path, text)
        change(path, sample_size=value)
        loaded = load_model(str(model))
        assert loaded.height_and_width == height_and_width
        assert loaded.size == min(height_and_width)
    replace(path, text)
    change(path, attention_head_dim=[2, 2], upcast_attention=None, _diffusers_version=None, an_unknown_key={"a": [1]})
    change(model / "tokenizer" / "tokenizer_config.json", model_max_length=1000000000000000019884624838656)
    change(model / "model_index.json", text_encoder_2=[None, None], tokenizer_2=[None, None])
    load_model(str(model))


def test_a_picture_is_as_large_as_the_config_says(fewstep, model, tmp_path):
    for value, size in (([4, 8], (16, 8)), (None, (16, 16))):
        change(model / "unet" / "config.json", sample_size=value)
        done = fewstep("sample", "a cat", model=model, steps=1, out=tmp_path / str(size), device="cpu")
        assert done.code == 0, done.err
        assert image_size(Path(done.out.strip())) == size


def test_sdxl_whose_parts_are_of_several_models(tmp_path):
    model = tiny_sdxl(tmp_path / "xl")
    path = model / "unet" / "config.json"
    text = path.read_text()
    for key, value in (("addition_embed_type", "image"), ("addition_embed_type", "text_image"),
                       ("addition_time_embed_dim", 16), ("projection_class_embeddings_input_dim", 80),
                       ("transformer_layers_per_block", [1, 10**6])):  # fmt: skip
        replace(path, text)
        change(path, **{key: value})
        assert str(path) in refusal(model).message
    replace(path, text)
    change(model / "model_index.json", text_encoder_2=[None, None])
    assert refusal(model).message == f"{path}: cross_attention_dim is 40, but the text encoder gives 16"


# --- weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", WEIGHTS)
def test_weights_that_are_not_finite(model, part):
    path = model / part / WEIGHTS[part]
    for value in (torch.nan, torch.inf, -torch.inf):

        def spoil(tensors, value=value):
            tensors[max(tensors)].view(-1)[-1] = value

        rewrite(path, spoil)
        error = refusal(model)
        assert error.message.startswith(f"{model}/{part} holds values that are not finite: 1 in ")


def test_weights_whose_sum_overflows_are_finite(model):
    rewrite(model / "unet" / WEIGHTS["unet"], lambda tensors: tensors["conv_in.weight"].fill_(3e38))
    load_model(str(model))


@pytest.mark.parametrize("part", WEIGHTS)
def test_tensors_that_no_module_takes(model, part):
    rewrite(model / part / WEIGHTS[part], lambda tensors: tensors.update(lora_up=torch.zeros(2)))
    error = refusal(model)
    assert error.message == (f"{model}/{part}/config.json has no place for 1 tensor of its weights, such as lora_up")


def test_tensors_that_text_encoders_keep_are_left(model):
    more = {"text_model.embeddings.position_ids": torch.arange(16)[None], "logit_scale": torch.zeros(1)}
    rewrite(model / "text_encoder" / WEIGHTS["text_encoder"], lambda tensors: tensors.update(more))
    load_model(str(model))


@pytest.mark.parametrize("part", WEIGHTS)
def test_files_that_stand_in_for_weights(model, part):
    path = model / part / WEIGHTS[part]
    replace(path, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    error = refusal(model)
    assert error.message == f"{path} is a Git LFS pointer, not the file itself"
    assert "git lfs pull" in error.hint
    replace(path, "<!DOCTYPE html>\n<html>")
    assert refusal(model).message == f"{path} is a web page, not the file itself"
    replace(path, b"\xff" * 100)
    assert refusal(model).message.startswith(f"{path} is not a readable safetensors file (")


def test_lists_of_shards(model):
    weights = model / "unet" / WEIGHTS["unet"]
    index = weights.with_name("diffusion_pytorch_model.safetensors.index.json")
    shards = {f"diffusion_pytorch_model-0000{i}-of-00002.safetensors": {} for i in (1, 2)}
    for i, (key, tensor) in enumerate(sorted(load_file(weights).items())):
        shards[list(shards)[i % 2]][key] = tensor
    for name, tensors in shards.items():
        save_file(tensors, weights.with_name(name), {"format": "pt"})
    weights.unlink()
    whole = {key: name for name, tensors in shards.items() for key in tensors}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": whole}))
    load_model(str(model))
    maps = (3, {}, {"a": 3}, {"a": "../../secret.safetensors"}, {"a": "lost.safetensors"}, {"a": ["x"]}, [], None)
    for broken in ("[]", "{}", *(json.dumps({"weight_map": value}) for value in maps)):
        replace(index, broken)
        assert str(index) in refusal(model).message


def test_pictures_that_are_not_finite_are_never_written(fewstep, model, tmp_path):
    """Finite weights whose output overflows."""
    rewrite(model / "vae" / WEIGHTS["vae"], lambda tensors: tensors["decoder.conv_in.weight"].fill_(3e38))
    done = fewstep("sample", "a cat", model=model, steps=1, out=tmp_path / "out", device="cpu")
    assert (done.code, done.out) == (1, "")
    assert done.error == f"the autoencoder of {model} gives values that are not finite"
    assert not (tmp_path / "out").exists()


# --- other networks, and names ---------------------------------------------------------------------------------


def test_controlnets_that_do_not_fit(model, tmp_path):
    loaded = load_model(str(model))
    folder = tmp_path / "net"
    ControlNetModel.from_unet(loaded.unet, conditioning_embedding_out_channels=(8, 8)).save_pretrained(folder)
    path, text = folder / "config.json", (folder / "config.json").read_text()
    load_controlnet(str(folder), loaded)
    for key, value in (("cross_attention_dim", 24), ("layers_per_block", 10**6), ("layers_per_block", 2),
                       ("conditioning_channels", 1), ("in_channels", 9), ("norm_num_groups", 0), ("norm_eps", None),
                       ("attention_head_dim", 0), ("conditioning_embedding_out_channels", [8, 8, 8]),
                       ("conditioning_embedding_out_channels", None), ("_class_name", "T2IAdapter")):  # fmt: skip
        replace(path, text)
        change(path, **{key: value})
        with pytest.raises(FewstepError, match=f"{path}|{folder} does not fit the model: {key} ") as caught:
            load_controlnet(str(folder), loaded)
        assert "\n" not in caught.value.message
    replace(path, text)
    rewrite(folder / WEIGHTS["unet"], lambda tensors: tensors["conv_in.bias"].fill_(torch.nan))
    with pytest.raises(FewstepError, match=r"/net holds values that are not finite: 16 in conv_in\.bias"):
        load_controlnet(str(folder), loaded)


def test_image_processors_of_another_network(tmp_path):
    folder = tiny_clip(tmp_path / "clip")
    path, text = folder / "preprocessor_config.json", (folder / "preprocessor_config.json").read_text()
    load_clip(str(folder), "cpu")
    for spoil in SPOILT.values():
        replace(path, spoil(text))
        with pytest.raises(FewstepError, match=re.escape(str(path))):
            load_clip(str(folder), "cpu")
    for key, value in (("size", 10**9), ("size", {"shortest_edge": 10**9}), ("size", []), ("crop_size", 8),
                       ("crop_size", {"height": "x"}), ("image_mean", [0.5]), ("image_std", [0, 0, 0])):  # fmt: skip
        replace(path, text)
        change(path, **{key: value})
        with pytest.raises(FewstepError, match=re.escape(str(path))):
            load_clip(str(folder), "cpu")


def test_a_weight_that_is_not_finite_is_not_merged_into(fewstep, model, tmp_path):
    key = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    lora = {f"unet.{key.removesuffix('weight')}lora_{part}.weight": torch.ones(size) * 0.01
            for part, size in (("A", (2, 32)), ("B", (32, 2)))}  # fmt: skip
    save_file(lora, tmp_path / "lora.safetensors")
    rewrite(model / "unet" / WEIGHTS["unet"], lambda tensors: tensors[key].view(-1)[:3].fill_(torch.inf))
    done = fewstep("merge", tmp_path / "lora.safetensors", into=model, out=tmp_path / "out")
    assert done.code == 1
    assert done.error == f"{model}/unet/{WEIGHTS['unet']} holds values that are not finite: 3 in {key}"
    assert not (tmp_path / "out").exists()


def test_a_short_name_that_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, close in (("sd14", "sd15"), ("SDXl", "sdxl"), ("emojy", "emoji"), ("ssd1b", "ssd-1b"), ("sd2.1", "sd21")):
        error = refusal(Path(name))
        assert error.message == f"model {name} not found"
        assert error.hint.startswith(f"did you mean {close}? short names are emoji, sd15, sd21, ssd-1b, sdxl; ")
    assert refusal(Path("nowhere-at-all")).hint.startswith("short names are emoji, sd15, sd21, ssd-1b, sdxl; ")
