"""What a layout is called comes from how its keys begin and end, whatever stands between."""

import pytest

from fewstep.lora.dialects import taken_apart
from fewstep.lora.layouts import layout_of

Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
FLAT = Q.replace(".", "_")
KEYS = {  # what it is called: keys of such a file
    "kohya": [f"lora_unet_{FLAT}.lora_down.weight", "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"],
    "diffusers": [f"unet.{Q}.lora_A.weight", "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight"],
    "diffusers (old)": [f"unet.{Q}.lora.down.weight", f"{Q}.lora_linear_layer.down.weight"],
    "PEFT": [f"base_model.model.{Q}.lora_A.weight", f"{Q}_2.lora_A.default.weight"],
    "LyCORIS": [f"lycoris_{FLAT}.lora_down.weight"],
    "PEFT, bare names, kohya factors": [
        f"unet.base_model.model.{Q}.lora_A.weight",
        f"base_model.model.text_encoder.{Q}.lora_A.weight",
        f"{Q}.lora_down.weight",
    ],
    "diffusion_model": ["diffusion_model.middle_block.1.proj_in.lora_A.weight"],
    "attention processors": ["unet.down_blocks.0.attentions.0.attn1.processor.to_q_lora.down.weight"],
    "cloneofsimo": ["unet:0:down", "unet:0:up"],
    "LyCORIS (LoHa)": [f"lora_unet_{FLAT}.hada_w1_a"],
    "LyCORIS (LoKr)": [f"lora_unet_{FLAT}.lokr_w2_a"],
    "LyCORIS (LoCon)": [f"lora_unet_{FLAT}.lora_down.weight", f"lora_unet_{FLAT}.lora_mid.weight"],
    "kohya, DoRA": [f"lora_unet_{FLAT}.lora_down.weight", f"lora_unet_{FLAT}.dora_scale"],
    "LyCORIS (LoHa), DoRA": [f"lora_unet_{FLAT}.hada_w1_a", f"lora_unet_{FLAT}.dora_scale"],
    # begins as one and ends as another
    "kohya names, PEFT factors": [f"lora_unet_{FLAT}.lora_A.weight"],
    "PEFT names, kohya factors": [f"base_model.model.{Q}.lora_down.weight"],
    # what other layouts' keys begin or end with stands inside
    "diffusers names, kohya factors": ["unet.lokr_lora_A.diffusion_model.processor.hada_.lora_down.weight"],
    "kohya, LyCORIS (LoKr)": ["lora_unet_a.lora_down.weight", "lora_unet_b.lora_down.weight", "lora_unet_c.lokr_w1"],
}


@pytest.mark.parametrize("label", KEYS)
def test_labels(label: str) -> None:
    keys = [key.replace("lora_up", "lora_down") for key in KEYS[label]]
    assert layout_of(taken_apart(keys, "x")) == label
