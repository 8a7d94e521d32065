"""Names of modules: the tables equal the networks, and the original layout's names equal diffusers' converter's."""

from functools import cache

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import LDM_UNET_KEY, convert_ldm_unet_checkpoint
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from fewstep.assets import FOLDER, MODEL
from fewstep.families import FAMILIES, ModuleShape
from fewstep.families.ldm import ldm_names
from fewstep.lora.layers import module_shapes

CLIP_L = CLIPTextConfig(num_hidden_layers=12, hidden_size=768, intermediate_size=3072, num_attention_heads=12)
OPENCLIP_H = CLIPTextConfig(num_hidden_layers=23, hidden_size=1024, intermediate_size=4096, num_attention_heads=16)
OPENCLIP_BIG_G = CLIPTextConfig(
    num_hidden_layers=32, hidden_size=1280, intermediate_size=5120, num_attention_heads=20, projection_dim=1280
)
EMOJI_TEXT = CLIPTextConfig.from_pretrained(FOLDER / MODEL / "text_encoder")
TEXT = {
    "sd15": {"text_encoder": (CLIPTextModel, CLIP_L)},
    "sd21": {"text_encoder": (CLIPTextModel, OPENCLIP_H)},
    "ssd-1b": {
        "text_encoder": (CLIPTextModel, CLIP_L),
        "text_encoder_2": (CLIPTextModelWithProjection, OPENCLIP_BIG_G),
    },
    "sdxl": {
        "text_encoder": (CLIPTextModel, CLIP_L),
        "text_encoder_2": (CLIPTextModelWithProjection, OPENCLIP_BIG_G),
    },
    "emoji": {"text_encoder": (CLIPTextModel, EMOJI_TEXT)},
}


@cache
def unet(family: str) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**FAMILIES[family].unet)


def owners(network: nn.Module) -> list[str]:
    """Names of the modules that have parameters of their own."""
    return list(dict.fromkeys(key.rpartition(".")[0] for key in network.state_dict()))


def canonical(name: str) -> str:
    """A name in a text encoder of transformers, with the level that its version 5 drops."""
    return name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}"


def text_shapes(family: str) -> dict[str, ModuleShape]:
    shapes = {}
    for prefix, (kind, config) in TEXT[family].items():
        with torch.device("meta"):
            encoder = kind(config)
        shapes |= {f"{prefix}.{canonical(name)}": shape for name, shape in linears(encoder).items()}
    return shapes


def linears(network: nn.Module) -> dict[str, ModuleShape]:
    return {name: shape for name, shape in module_shapes(network).items() if shape.kernel == 0}


@pytest.mark.parametrize("family", FAMILIES)
def test_all_modules_are_the_networks(family: str) -> None:
    networks = module_shapes(unet(family)) | text_shapes(family)
    assert list(FAMILIES[family].all_modules().items()) == list(networks.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_reads_the_original_names_as_ours(family: str) -> None:
    network = unet(family)
    original = ldm_names(owners(network))
    assert list(original) == owners(network)
    keys = [key.rpartition(".") for key in network.state_dict()]
    checkpoint = {f"{LDM_UNET_KEY}{original[name]}.{kind}": f"{name}.{kind}" for name, _, kind in keys}
    assert len(checkpoint) == len(keys)
    converted = convert_ldm_unet_checkpoint(checkpoint, network.config)
    assert converted == {key: key for key in network.state_dict()}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tables_modules_suffice_for_the_original_names(family: str) -> None:
    table = [name for name in FAMILIES[family].all_modules() if not name.startswith("text_encoder")]
    original = ldm_names(owners(unet(family)))
    assert ldm_names(table) == {name: original[name] for name in table}


@pytest.mark.parametrize("family", FAMILIES)
def test_no_two_modules_share_a_flat_spelling(family: str) -> None:
    modules = list(FAMILIES[family].all_modules())
    original = ldm_names(modules)
    meant: dict[str, str] = {}
    for spelling, name in [*((name, name) for name in modules), *((new, name) for name, new in original.items())]:
        assert meant.setdefault(spelling.replace(".", "_"), name) == name
    assert len(meant) == len(modules) + len(original)


@pytest.mark.parametrize(
    ("family", "name", "original"),
    [
        (
            "sd15",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
            "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
        ),
        ("sd15", "down_blocks.2.downsamplers.0.conv", "input_blocks.9.0.op"),
        ("sd15", "up_blocks.0.upsamplers.0.conv", "output_blocks.2.1.conv"),
        ("sd15", "up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv"),
        ("sd15", "mid_block.attentions.0.norm", "middle_block.1.norm"),
        ("sd15", "mid_block.resnets.1.conv2", "middle_block.2.out_layers.3"),
        ("sdxl", "up_blocks.2.resnets.0.conv_shortcut", "output_blocks.6.0.skip_connection"),
        ("sdxl", "add_embedding.linear_2", "label_emb.0.2"),
        # The public single file of SSD-1B has no middle_block.1: https://github.com/huggingface/diffusers/issues/6689
        ("ssd-1b", "mid_block.resnets.0.time_emb_proj", "middle_block.0.emb_layers.1"),
    ],
)
def test_known_original_names(family: str, name: str, original: str) -> None:
    assert ldm_names(owners(unet(family)))[name] == original


def test_what_the_original_layout_has_no_place_for_is_left_out() -> None:
    strangers = ["time_embedding.cond_proj", "down_blocks.0.resnets.0.nonlinearity", "text_encoder.text_projection"]
    assert ldm_names([*strangers, "conv_in", "down_blocks.0.resnets.0", "mid_block", ""]) == {
        "conv_in": "input_blocks.0.0"
    }
