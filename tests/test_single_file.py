"""Checkpoints in the original layout: read exactly as diffusers reads them, nothing dropped, folded into, explained."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.assets import FOLDER, MODEL
from fewstep.errors import FewstepError
from fewstep.families import FAMILIES
from fewstep.families.single_file import LEVEL, VAE, WITHOUT_LEVEL, Origin, text_origins
from fewstep.lora.files import load_adapter
from fewstep.lora.low_rank import Adapter, LowRank
from fewstep.lora.recipe import Recipe
from fewstep.lora.writing import save_adapter
from fewstep.models.load import load_model
from fewstep.models.single_file import CheckpointPart, clip_vocabulary, new_tokenizer, text_part, unet_part, vae_part
from fewstep.models.weights import at_origin, family_of_sizes
from tests.sessions import pictures, session
from tests.tiny import tiny_images

CLIP, OPENCLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
PREFIXES = {  # how each family's released files call their text encoders
    "sd15": (CLIP,),
    "sd21": (OPENCLIP,),
    "ssd-1b": ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
    "sdxl": ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
    "emoji": (CLIP,),
}


def parts_of(family: str) -> dict[str, CheckpointPart]:
    parts = {"unet": unet_part(FAMILIES[family], 4), "vae": vae_part(FAMILIES[family])}
    names = zip(("text_encoder", "text_encoder_2"), FAMILIES[family].text_encoders, PREFIXES[family], strict=False)
    return parts | {name: text_part(name, encoder, frozenset({prefix + LEVEL})) for name, encoder, prefix in names}


def stored(weights: Mapping[str, Tensor], origins: Mapping[str, Origin]) -> dict[str, Tensor]:
    """The tensors of a single file that has these weights."""
    thirds: dict[str, dict[int, Tensor]] = {}
    file = {}
    for name, origin in origins.items():
        tensor = weights[name].T if origin.transposed else weights[name]
        if origin.third is None:
            file[origin.key] = tensor.contiguous()
        else:
            thirds.setdefault(origin.key, {})[origin.third] = tensor
    return file | {key: torch.cat([found[i] for i in range(3)]) for key, found in thirds.items()}


def cheap(shape: torch.Size, number: int) -> Tensor:
    """A full-size tensor that takes no memory and is unlike others in every row."""
    rows = torch.arange(shape[0], dtype=torch.float32) + 10_000 * number
    return rows.view(-1, *(1,) * (len(shape) - 1)).expand(shape)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_read_as_diffusers_reads_it(family: str):
    """Full size: the networks' own shapes, on tensors that take no memory."""
    number = 0
    for name, part in parts_of(family).items():
        weights = {}
        for key, tensor in part.network.state_dict().items():
            weights[key] = cheap(tensor.shape, number := number + 1)
        file = stored(weights, part.origins)
        assert len(part.origins) == len(weights)
        if name == "unet":
            converted = convert_ldm_unet_checkpoint(dict(file), part.network.config)
        elif name == "vae":
            converted = convert_ldm_vae_checkpoint(as_convolutions(file), part.network.config)
        elif any(key.endswith("in_proj_weight") for key in file):
            prefix = OPENCLIP if family == "sd21" else "conditioner.embedders.1.model."
            converted = convert_open_clip_checkpoint(part.network, dict(file), prefix)
        else:
            converted = convert_ldm_clip_checkpoint(dict(file))
        theirs = {key.removeprefix("text_model.") if name == "text_encoder" else key: x for key, x in converted.items()}
        assert theirs.keys() == weights.keys()
        for key, origin in part.origins.items():
            mine = at_origin(file[origin.key], origin)
            assert torch.equal(mine.reshape(theirs[key].shape)[..., 0], theirs[key][..., 0]), key
            assert torch.equal(theirs[key][..., 0].reshape(-1), weights[key][..., 0].reshape(-1)), key


@pytest.mark.parametrize("family", FAMILIES)
def test_a_files_family_is_told_by_its_unet(family: str):
    """SSD-1B's tensors are all among SDXL's, and of their sizes."""
    part = unet_part(FAMILIES[family], 9)
    state = part.network.state_dict()
    sizes = {origin.key: tuple(state[name].shape) for name, origin in part.origins.items()}
    assert family_of_sizes(sizes) is FAMILIES[family]
    assert family_of_sizes(sizes | {"model.diffusion_model.out.2.weight": (1, 1, 1, 1)}) is None


def as_convolutions(file: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The original autoencoder's attention is made of 1 x 1 convolutions."""
    return {key: x[..., None, None] if ".attn_1." in key and x.dim() == 2 else x for key, x in file.items()}


def emoji_file(path: Path, prefix: str = CLIP, **more: Tensor) -> Path:
    """The embedded model as a single file, with CLIP's or OpenCLIP's names."""
    model = load_model(MODEL)
    tensors: dict[str, Tensor] = {}
    for name, part in parts_of("emoji").items():
        weights, origins = getattr(model, name).state_dict(), part.origins
        if name == "text_encoder":
            spelled = text_origins([f"text_model.{key}" for key in weights], prefix)
            origins = {key: spelled[f"text_model.{key}"] for key in weights}
        tensors |= stored(weights, origins)
    save_file({k: x.half() for k, x in tensors.items()} | {k: x.clone() for k, x in more.items()}, path)
    return path


@pytest.fixture(scope="module", params=[CLIP, OPENCLIP, CLIP + WITHOUT_LEVEL], ids=["clip", "openclip", "old clip"])
def emoji(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emoji_file(tmp_path_factory.mktemp("single") / "emoji.safetensors", request.param)


def drawn(model: str) -> Tensor:
    return pictures(model, "a red fox", steps=2, solver="ddim", guidance_scale=4)[0].pixels


def test_a_single_file_draws_what_its_folder_draws(emoji: Path):
    assert torch.equal(drawn(str(emoji)), drawn(MODEL))
    assert load_model(str(emoji)).family == "emoji"


def test_a_lora_is_folded_into_a_single_file_text_encoder_and_all(fewstep, emoji, tmp_path):
    shapes = FAMILIES["emoji"].all_modules()
    names = [*list(shapes)[:3], *(name for name in shapes if "layers.1." in name)]
    torch.manual_seed(0)
    updates = {
        name: LowRank(
            torch.randn(2, shapes[name].in_, *(shapes[name].kernel,) * 2 if shapes[name].kernel else ()),
            torch.randn(shapes[name].out, 2, *(1, 1) if shapes[name].kernel else ()),
        )
        for name in names
    }
    save_adapter(tmp_path / "lora.safetensors", Adapter(updates), Recipe(method="denoising"), torch.float32)
    done = fewstep("merge", tmp_path / "lora.safetensors", into=emoji, out=tmp_path / "folded.safetensors")
    assert done.code == 0, done.err
    whole = load_model(MODEL).layers()
    folded = load_model(str(tmp_path / "folded.safetensors")).layers()
    adapter, _ = load_adapter(tmp_path / "lora.safetensors", shapes)
    for name, layer in whole.items():
        delta = adapter.modules[name].delta().view(layer.weight.shape) if name in adapter.modules else 0
        assert torch.allclose(folded[name].weight, (layer.weight + delta).half().float(), atol=1e-6), name


def test_a_single_file_with_an_acceleration_in_it_carries_its_recipe(fewstep, emoji, tmp_path):
    assert load_model(str(emoji), device="meta").recipe is None
    assert fewstep("merge", "lcm", into=emoji, out=tmp_path / "fast.safetensors").code == 0
    recipe = load_model(str(tmp_path / "fast.safetensors"), device="meta").recipe
    assert (recipe.method, recipe.solver, recipe.steps) == ("lcd", "lcm", 4)


def test_a_single_file_is_trained_and_becomes_a_folder(fewstep, tmp_path):
    file, data = emoji_file(tmp_path / "emoji.safetensors"), tiny_images(tmp_path / "data", 2, size=128)
    options = {"model": file, "data": data, "steps": 1, "batch_size": 1}
    done = fewstep("distill", out=tmp_path / "lora", rank=2, **options)
    assert done.code == 0, done.err
    done = fewstep("finetune", "--full", out=tmp_path / "whole", **options)
    assert done.code == 0, done.err
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "whole" / "model")
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert load_model(str(tmp_path / "whole" / "model")).text_sha256()


def test_clips_tokenizer_is_clips():
    vocabulary, merges = clip_vocabulary()
    assert (len(vocabulary), len(merges), vocabulary["<|endoftext|>"]) == (49408, 48894, 49407)
    sdxl = FAMILIES["sdxl"]
    first, second = (new_tokenizer(sdxl, encoder) for encoder in sdxl.text_encoders)
    words = [320, 1125, 539, 320, 2368]  # openai/clip-vit-large-patch14 on "a photo of a cat"
    assert first("a photo of a cat").input_ids == [49406, *words, 49407]
    assert first("a photo of a cat", padding="max_length").input_ids[7:] == [49407] * 70
    assert second("a photo of a cat", padding="max_length").input_ids[7:] == [0] * 70


ONE = torch.ones(1)


@pytest.mark.parametrize(
    ("more", "metadata", "yaml", "predicts"),
    [
        ({}, {}, None, "v_prediction"),  # the family's
        ({}, {"modelspec.prediction_type": "epsilon"}, None, "epsilon"),
        ({"v_pred": ONE}, {}, 'parameterization: "eps"', "v_prediction"),
        ({}, {}, "model:\n  params:\n    parameterization: v\n", "v_prediction"),
        ({}, {}, "model:\n  target: ldm\n", "epsilon"),
    ],
)
def test_what_a_file_says_of_its_prediction_is_heard(tmp_path, more, metadata, yaml, predicts):
    file = emoji_file(tmp_path / "emoji.safetensors")
    save_file(load_file(file) | {k: x.clone() for k, x in more.items()}, file, metadata)
    if yaml is not None:
        file.with_suffix(".yaml").write_text(yaml)
    assert load_model(str(file)).prediction_type == predicts


def test_zero_terminal_snr_is_heard(tmp_path):
    model = load_model(str(emoji_file(tmp_path / "emoji.safetensors", ztsnr=ONE, v_pred=ONE)))
    assert model.schedule.zero_terminal_snr


def test_noise_prediction_at_zero_terminal_snr_is_refused(tmp_path):
    file = emoji_file(tmp_path / "emoji.safetensors", ztsnr=ONE)
    file.with_suffix(".yaml").write_text("model:\n  target: ldm\n")
    with pytest.raises(FewstepError, match="epsilon prediction on a zero-terminal-SNR") as refused:
        load_model(str(file))
    assert "parameterization: v" in refused.value.hint


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (
            lambda t: t.pop(f"{VAE}decoder.conv_in.bias"),
            f"lacks 1 of the model's tensors, such as {VAE}decoder.conv_in",
        ),
        (lambda t: t.update(stray=ONE), "has 1 tensor without a place in the model, such as stray"),
        (lambda t: t.update({f"{VAE}decoder.conv_in.bias": ONE}), f"{VAE}decoder.conv_in.bias is 1, not 128"),
        (
            lambda t: t[f"{VAE}decoder.conv_in.bias"].fill_(torch.nan),
            "holds values that are not finite: 128 in decoder.conv_in.bias",
        ),
        (lambda t: t.clear(), "is not a Stable Diffusion checkpoint in the original layout"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(fewstep, tmp_path, change: Any, error: str):
    file = emoji_file(tmp_path / "emoji.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    done = fewstep("sample", "a cat", model=file, out=tmp_path / "out")
    assert done.code == 1
    assert error in done.error


def test_every_family_says_how_large_its_pictures_are():
    sides = {name: family.unet["sample_size"] * 8 for name, family in FAMILIES.items() if name != MODEL}
    assert sides == {"sd15": 512, "sd21": 768, "ssd-1b": 1024, "sdxl": 1024}


def test_what_belongs_to_training_is_passed_over(tmp_path):
    more = {"model_ema.decay": ONE, "alphas_cumprod": ONE, f"{CLIP}text_model.embeddings.position_ids": ONE}
    assert load_model(str(emoji_file(tmp_path / "emoji.safetensors", **more))).family == "emoji"


def test_the_families_configs_are_the_embedded_models():
    """The emoji family's networks, from our table, are those of the folder that ships."""
    for name, part in parts_of("emoji").items():
        said = json.loads((FOLDER / MODEL / name / "config.json").read_text())
        mine = part.network.config.to_dict() if name == "text_encoder" else dict(part.network.config)
        different = {k for k in said.keys() & mine.keys() if _plain(said[k]) != _plain(mine[k]) and k[0] != "_"}
        assert different <= {"bos_token_id", "eos_token_id", "pad_token_id", "dtype", "architectures", "sample_size"}
        if name == "vae":
            assert part.network.config.scaling_factor == said["scaling_factor"]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def test_a_single_file_is_exported_as_a_folder(fewstep, emoji, tmp_path):
    done = fewstep("export", model=emoji, lora="lcm", to="diffusers", out=tmp_path / "fast")
    assert done.code == 0, done.err
    exported = load_model(str(tmp_path / "fast"))
    assert (exported.recipe.solver, exported.recipe.steps) == ("lcm", 4)
    folded = session(emoji, ["lcm"]).engine.model.unet.state_dict()
    for name, weight in exported.unet.state_dict().items():
        assert torch.allclose(weight, folded[name].half().float(), atol=1e-6), name
