"""The Stable Diffusion families: the UNet each is built from, and the shapes of its LoRA targets."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

TABLES = Path(__file__).parent

# The 14 module names LCM-LoRA adapts (LCM-LoRA report, Table 1: at rank 64 they give its parameter counts).
TARGET_SUFFIXES = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "conv1",
    "conv2",
    "conv_shortcut",
    "downsamplers.0.conv",
    "upsamplers.0.conv",
    "time_emb_proj",
)


def is_target(name: str) -> bool:
    """Whether LCM-LoRA adapts the module of this dotted name."""
    return any(f".{name}".endswith(f".{suffix}") for suffix in TARGET_SUFFIXES)


class ModuleShape(NamedTuple):
    """The weight of a Linear or Conv2d."""

    out: int
    in_: int
    kernel: int  # side of a Conv2d's kernel; 0 for a Linear

    def lora_parameters(self, rank: int) -> int:
        """Values in A and B: the k x k kernel is A's, B is 1 x 1."""
        return rank * (self.in_ * max(self.kernel, 1) ** 2 + self.out)


@dataclass(frozen=True)
class Family:
    """One family of models: its name and what shapes its UNet (diffusers UNet2DConditionModel arguments)."""

    name: str
    unet: Mapping[str, Any]

    def modules(self) -> dict[str, ModuleShape]:
        """LoRA target name -> shape, in the UNet's order."""
        return _table(self.name)


@cache
def _table(name: str) -> dict[str, ModuleShape]:
    rows = json.loads((TABLES / f"{name}.json").read_text(encoding="utf-8"))
    return {module: ModuleShape(*shape) for module, shape in rows.items()}


_SD15 = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8}
_SD21 = {
    "sample_size": 96,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
_SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_SSD_1B = _SDXL | {
    "transformer_layers_per_block": (1, (2, 2), (4, 4)),
    "reverse_transformer_layers_per_block": ((4, 4, 10), (2, 1, 1), 1),
    "mid_block_type": "UNetMidBlock2D",  # one resnet without attention
}

_EMOJI = {  # the model that ships; made by recipes/emoji
    "sample_size": 16,
    "block_out_channels": (96, 192, 192),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 128,
    "attention_head_dim": (3, 6, 6),
    "time_embedding_dim": 256,
}

FAMILIES = {
    family.name: family
    for family in (
        Family("sd15", _SD15),
        Family("sd21", _SD21),
        Family("ssd-1b", _SSD_1B),
        Family("sdxl", _SDXL),
        Family("emoji", _EMOJI),
    )
}


def family_of(shapes: Mapping[str, ModuleShape]) -> str:
    """The label of the family whose target modules and shapes these are exactly, else `custom`.

    What fits is decided by names and shapes; the label is for people.
    """
    targets = {name: shape for name, shape in shapes.items() if is_target(name)}
    return next((family.name for family in FAMILIES.values() if family.modules() == targets), "custom")
