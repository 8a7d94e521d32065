"""Parts of a model folder, as the libraries whose classes they are load them: to the bit."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTextModel, CLIPTextModelWithProjection

from fewstep.errors import FewstepError
from fewstep.models.parts import load_part
from tests.tiny import tiny_clip, tiny_sdxl, tiny_unet, tiny_vae

KINDS = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "controlnet": ControlNetModel,
    "clip": CLIPModel,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    model = tiny_sdxl(tmp_path_factory.mktemp("parts") / "model")
    ControlNetModel.from_unet(tiny_unet()).save_pretrained(model / "controlnet")
    tiny_clip(model / "clip")
    return model


def assert_same(network, peer) -> None:
    assert type(network) is type(peer)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    for found, expected in (
        (network.state_dict(), peer.state_dict()),
        (dict(network.named_buffers()), dict(peer.named_buffers())),
    ):
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype, name
            assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", KINDS)
def test_parts_are_as_their_libraries_load_them(folder, part, dtype):
    network = load_part(KINDS[part], folder / part, dtype, "cpu")
    assert_same(network, KINDS[part].from_pretrained(folder / part, torch_dtype=dtype))


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "clip"])
def test_text_encoders_attend_as_their_library_makes_them(folder, part):
    network = load_part(KINDS[part], folder / part, torch.float32, "cpu")
    peer = KINDS[part].from_pretrained(folder / part)
    assert network.config._attn_implementation == peer.config._attn_implementation


def test_an_autoencoder_of_old_spelling(tmp_path):
    vae = AutoencoderKL.from_config(tiny_vae().config, mid_block_add_attention=True)
    vae.save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(file)
    for new, spelling in old.items():
        weights = {key.replace(f".attentions.0.{new}.", f".attentions.0.{spelling}."): x for key, x in weights.items()}
    assert sum("proj_attn" in key for key in weights) == 4
    save_file(weights, file)
    loaded = load_part(AutoencoderKL, tmp_path, torch.float32, "cpu")
    assert_same(loaded, AutoencoderKL.from_pretrained(tmp_path))
    assert all(torch.equal(x, loaded.state_dict()[name]) for name, x in vae.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_encoders_of_either_spelling(folder, tmp_path, prefix):
    CLIPTextModel.from_pretrained(folder / "text_encoder").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    bare = {key.removeprefix("text_model."): x for key, x in weights.items()}
    spelled = {prefix + key: x for key, x in bare.items()}
    save_file(spelled | {f"{prefix}embeddings.position_ids": torch.arange(16)[None]}, tmp_path / "model.safetensors")
    loaded = load_part(CLIPTextModel, tmp_path, torch.float32, "cpu").state_dict()
    assert all(torch.equal(x, bare[name.removeprefix("text_model.")]) for name, x in loaded.items())
    assert len(loaded) == len(bare)


def test_weights_of_whole_numbers_are_refused(tmp_path):
    tiny_vae().save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    weights = load_file(file)
    weights["decoder.conv_in.weight"] = weights["decoder.conv_in.weight"].to(torch.int8)
    save_file(weights, file)
    with pytest.raises(FewstepError, match=r"holds whole numbers in decoder\.conv_in\.weight"):
        load_part(AutoencoderKL, tmp_path, torch.float32, "cpu")
