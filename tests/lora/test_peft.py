"""PEFT's configs: patterns as PEFT itself matches them, each component by its own, and patterns of hostile files."""

import json
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn

from fewstep.errors import FewstepError
from fewstep.families import ModuleShape
from fewstep.lora.files import load_adapter

NAMES = ("to_q", "to_k")
SHAPES = {
    f"{block}.attn{i}.{name}": ModuleShape(6, 6, 0) for block in ("down", "mid") for i in (1, 2) for name in NAMES
}


class Net(nn.Module):
    """Eight layers with names of a UNet's."""

    def __init__(self) -> None:
        super().__init__()
        for block in ("down", "mid"):
            attentions = {f"attn{i}": nn.ModuleDict({n: nn.Linear(6, 6) for n in NAMES}) for i in (1, 2)}
            self.add_module(block, nn.ModuleDict(attentions))


@pytest.mark.filterwarnings("ignore:The following")  # PEFT's, of patterns that match nothing
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(
    "pattern",
    [
        "to_q", "attn2.to_k", r".*attn2.*", r"^down\..*to_k", "attn1.to_q|attn2.to_k", r"attn[12].to_k",
        r"(down|mid).attn1.\w+", "mid.attn1.to_q", "o_q", "^to_q", "attn2", "",
    ],
)  # fmt: skip
def test_patterns_are_matched_as_peft_matches_them(pattern: str, rslora: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=list(NAMES), rank_pattern={pattern: 3},
                        alpha_pattern={pattern: 5, "to_k": 7}, use_rslora=rslora, init_lora_weights=False)  # fmt: skip
    model = get_peft_model(Net(), config)
    model.save_pretrained(tmp_path)
    adapter, _ = load_adapter(tmp_path, SHAPES)
    layers = {name.removeprefix("base_model.model."): layer for name, layer in model.named_modules()}
    assert adapter.modules.keys() == SHAPES.keys()
    for name, update in adapter.modules.items():
        torch.testing.assert_close(update.delta(), layers[name].get_delta_weight("default"), rtol=1e-5, atol=1e-6)


TE, UNET = "text_model.encoder.layers.0.self_attn.q_proj", "down.attn1.to_q"
ALL = {UNET: ModuleShape(6, 6, 0)} | {
    f"{part}.{TE}": ModuleShape(6, 6, 0) for part in ("text_encoder", "text_encoder_2")
}


@pytest.mark.parametrize(
    ("told", "scales"),
    [
        ({"unet.lora_alpha": 8, "text_encoder.lora_alpha": 1, "text_encoder_2.lora_alpha": 3}, (4, 0.5, 1.5)),
        ({"text_encoder_2.lora_alpha": 3, "text_encoder.lora_alpha": 1, "unet.lora_alpha": 8}, (4, 0.5, 1.5)),
        ({"unet.lora_alpha": 8}, (4, 1, 1)),
        ({"text_encoder.lora_alpha": 8, "text_encoder.use_rslora": True}, (1, 8 / 2**0.5, 1)),
        ({"text_encoder.lora_alpha": 2, "text_encoder.alpha_pattern": {".*q_proj": 6}}, (1, 3, 1)),
        ({"lora_alpha": 6}, (3, 3, 3)),
        ({"lora_alpha": 6, "text_encoder_2.lora_alpha": 1}, (3, 3, 0.5)),
    ],
)  # fmt: skip
def test_each_component_has_its_own_config(told: dict, scales: tuple[float, ...], tmp_path: Path) -> None:
    tensors = {}
    for key in (f"unet.{UNET}", f"text_encoder.{TE}", f"text_encoder_2.{TE}"):
        tensors |= {f"{key}.lora_A.weight": torch.randn(2, 6), f"{key}.lora_B.weight": torch.randn(6, 2)}
    save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": json.dumps(told)})
    adapter, _ = load_adapter(tmp_path / "x.safetensors", ALL)
    for (name, update), scale in zip(adapter.modules.items(), [scales[i] for i in order(adapter)], strict=True):
        key = name if name.startswith("text") else f"unet.{name}"
        wanted = scale * tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"]
        torch.testing.assert_close(update.delta(), wanted)


def order(adapter) -> list[int]:
    """Where each module's component stands in (UNet, first text encoder, second)."""
    return [0 if n == UNET else 2 if n.startswith("text_encoder_2") else 1 for n in adapter.modules]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        (r"(.*.*.*.*)*x(", "has a damaged pattern"),
        (r"((.|..)+)+[!-/]", "has a pattern that never ends"),
    ],
)
def test_a_pattern_that_cannot_be_matched_is_refused_in_time(pattern: str, said: str, tmp_path: Path) -> None:
    key = f"unet.{'.'.join(['down_blocks_0_attentions'] * 12)}"
    tensors = {f"{key}.lora_A.weight": torch.ones(1, 2), f"{key}.lora_B.weight": torch.ones(2, 1)}
    told = {"lora_adapter_metadata": json.dumps({"unet.alpha_pattern": {pattern: 1}})}
    save_file(tensors, tmp_path / "x.safetensors", told)
    begun = time.monotonic()
    with pytest.raises(FewstepError, match=said):
        load_adapter(tmp_path / "x.safetensors", ALL)
    assert time.monotonic() - begun < 10  # a second, beside others


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"unet.lora_alpha": ' + "9" * 5000 + "}", "{", '{"lora_alpha": 1e999}']
)
def test_damaged_metadata_is_refused(text: str, tmp_path: Path) -> None:
    tensors = {f"unet.{UNET}.lora_A.weight": torch.ones(1, 6), f"unet.{UNET}.lora_B.weight": torch.ones(6, 1)}
    save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": text})
    with pytest.raises(FewstepError) as caught:
        dict(load_adapter(tmp_path / "x.safetensors", ALL)[0].modules)
    assert "\n" not in caught.value.message
