"""Other models' LoRAs are named, adapters that do not add refused with the reason; Stable Diffusion's are neither."""

from collections.abc import Iterable

import pytest
import torch
from safetensors.torch import save_file

from fewstep.errors import FewstepError
from fewstep.families import FAMILIES
from fewstep.families.ldm import ldm_names
from fewstep.lora.dialects import TEXT
from fewstep.lora.files import open_lora
from fewstep.lora.foreign import is_whole, model_of, reason_against

T = "transformer.transformer_blocks.0"
MODELS = [  # a module as some tool spells it, the width of its inputs, whose it is
    ("transformer.single_transformer_blocks.0.attn.to_q", 3072, "Flux"),
    ("lora_unet_double_blocks_0_img_attn_proj", 3072, "Flux"),
    ("lora_unet_single_blocks_7_linear1", 3072, "Flux"),
    ("diffusion_model.double_blocks.0.txt_mlp.0", 3072, "Flux"),
    ("lora_transformer_single_transformer_blocks_0_attn_to_q", 3072, "Flux"),
    (f"{T}.attn.to_q", 1536, "Stable Diffusion 3"),
    (f"{T}.attn.add_q_proj", 2432, "Stable Diffusion 3.5"),
    (f"{T}.attn.to_out.0", 999, "another diffusion transformer"),
    (f"{T}.attn.to_k", 2432, "Stable Diffusion 3.5"),
    ("diffusion_model.joint_blocks.0.x_block.attn.qkv", 1536, "Stable Diffusion 3"),
    ("transformer.transformer_blocks.40.img_mlp.net.0.proj", 3072, "Qwen-Image"),
    ("lora_unet_transformer_blocks_3_txt_mod_1", 3072, "Qwen-Image"),
    ("diffusion_model.blocks.0.cross_attn.k", 1536, "Wan"),
    ("lora_unet_blocks_0_self_attn_q", 5120, "Wan"),
    ("transformer.blocks.0.attn1.to_q", 5120, "Wan"),
    ("diffusion_model.layers.0.attention.qkv", 3840, "Z-Image or Lumina"),
    ("diffusion_model.noise_refiner.0.feed_forward.w1", 3840, "Z-Image or Lumina"),
    (f"{T}.attn1.to_q", 1152, "PixArt"),
    ("unet.transformer_blocks.0.attn2.to_k", 1152, "PixArt"),
    (f"{T}.attn1.to_q", 2240, "Sana"),
    (f"{T}.attn1.to_q", 2048, "LTX-Video"),
    (f"{T}.attn1.to_q", 1920, "CogVideoX"),
    ("diffusion_model.double_blocks.0.img_mlp.fc1", 3072, "HunyuanVideo"),
    ("lora_prior_unet_down_blocks_0_1_attention_attn_to_q", 2048, "Stable Cascade"),
    ("down_blocks.0.2.attention.attn.to_q", 2048, "Stable Cascade"),
    ("unet.mid_block.attentions.0.temporal_transformer_blocks.0.attn1.to_q", 1280, "Stable Video Diffusion"),
    ("transformer.joint_transformer_blocks.0.attn.to_q", 3072, "AuraFlow"),
    ("diffusion_model.double_stream_blocks.0.block.attn1.to_q", 2560, "HiDream"),
    ("base_model.model.model.layers.0.self_attn.q_proj", 4096, "a language model"),
    ("base_model.model.transformer.h.0.attn.c_attn", 768, "a language model"),
    ("text_encoder.encoder.block.0.layer.0.SelfAttention.q", 4096, "the text encoder T5"),
]


@pytest.mark.parametrize(("module", "width", "whose"), MODELS)
def test_another_models_lora_is_named(module: str, width: int, whose: str, tmp_path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {f"{module}.lora_A.weight": torch.ones(2, width), f"{module}.lora_B.weight": torch.ones(width, 2)}
    for extra in ({}, {f"{module}.dora_scale": torch.ones(1, width)}, {f"{module}.diff_b": torch.ones(width)}):
        save_file(tensors | extra, path)
        with pytest.raises(FewstepError) as caught:
            open_lora(path)
        assert caught.value.message == f"LoRA {path} is for {whose}, not for Stable Diffusion 1.x, 2.x or XL"
        assert "SSD-1B" in caught.value.hint


def test_a_spelling_that_is_no_lora_yet_names_its_model_too(tmp_path) -> None:
    key = "double_blocks.0.processor.qkv_lora1"
    save_file({f"{key}.{x}.weight": torch.ones(2, 2) for x in ("down", "up")}, tmp_path / "x.safetensors")
    with pytest.raises(FewstepError, match="is for Flux, not for Stable Diffusion"):
        open_lora(tmp_path / "x.safetensors")


def spellings(names: Iterable[str]) -> Iterable[str]:
    """Keys of Stable Diffusion modules in the layouts that are read."""
    names = list(names)
    bodies = [*names, *ldm_names(n for n in names if not n.startswith(TEXT)).values()]
    for body in bodies:
        for start in ("", "unet.", "base_model.model.", "diffusion_model.", "lora_unet_", "lycoris_"):
            spelled = f"{start}{body.replace('.', '_') if start.endswith('_') else body}"
            yield f"{spelled}.lora_A.weight"


@pytest.mark.parametrize("family", FAMILIES)
def test_no_module_of_stable_diffusion_is_taken_for_another_models(family: str) -> None:
    for key in spellings(FAMILIES[family].all_modules()):
        assert model_of([key], lambda _: (4, 320)) is None, key
        assert reason_against(key) is None, key


def test_most_keys_must_be_of_the_other_model() -> None:
    keys = [
        "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight",
        "x.joint_transformer_blocks.0.lora_down.weight",
    ]
    assert model_of(keys, lambda _: (4, 320)) is None
    assert model_of(keys[1:], lambda _: (4, 320)) == "AuraFlow"


def test_motion_modules_are_left_to_the_pipeline_which_may_have_them() -> None:
    key = "down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q.lora_A.weight"
    assert model_of([key], lambda _: (4, 320)) is None


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        *((x, "(IA)3") for x in (".on_input", ".ia3_l", ".ia3_l.default")),
        *((x, "OFT") for x in (".oft_blocks", ".oft_diag", ".oft_R.weight", ".oft_r", ".oft_R.default.weight")),
        *((x, "BOFT") for x in (".boft_R", ".boft_s", ".boft_R.default")),
        *((x, "norms") for x in (".w_norm", ".b_norm")),
        *((x, "biases") for x in (".diff_b", ".lora.up.bias", ".lora_B.bias", ".lora_up.bias", ".lora_B.default.bias")),
        (".diff", "whole weights"),
        (".lora_embedding_A", "embeddings"),
        (".vera_lambda_b", "VeRA"),
        (".hra_u", "HRA"),
        (".a1.weight", "GLoRA"),
    ],
)
def test_adapters_that_do_not_add_are_refused_with_the_reason(ending: str, reason: str) -> None:
    assert reason in (reason_against(f"lora_unet_mid_block_attentions_0_proj_in{ending}") or "")


@pytest.mark.parametrize("key", ["emb_params", "clip_l", "clip_g", "<s1>", "string_to_param.*"])
def test_a_textual_inversion_is_called_one(key: str) -> None:
    assert "textual inversion" in (reason_against(key) or "")


@pytest.mark.parametrize("key", ["a.weight", "a.bias", "base_model.model.conv_out.modules_to_save.default.weight"])
def test_whole_weights_are_called_so(key: str, tmp_path) -> None:
    assert is_whole(key)
    save_file({key: torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(FewstepError, match="it holds whole weights of modules, not factors"):
        open_lora(tmp_path / "x.safetensors")
