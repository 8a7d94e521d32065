"""The Stable Diffusion families: their networks, and the modules of these that a LoRA can adapt."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.configs import Modules

TABLES = Path(__file__).parent

# The 14 module names that LCM-LoRA adapts. At rank 64 they give the parameter counts of LCM-LoRA's Table 1.
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
_ENDS = tuple(f".{suffix}" for suffix in TARGET_SUFFIXES)


PLACES: dict[Modules, str] = {  # in a module's name
    "all": ".",
    "transformer": ".attentions.",
    "attention": ".attn",
    "cross-attention": ".attn2.",
}


def is_target(name: str, modules: Modules = "all") -> bool:
    """Whether a LoRA of these modules adapts the module of this dotted name.

    modules: keys of PLACES, which choose among LCM-LoRA's modules (`all` is all of them), and ends of names, such as
    attn2.to_k, which choose among all modules, like PEFT's target_modules; separated by commas.
    """
    return any(
        f".{name}".endswith(_ENDS) and PLACES[part] in f".{name}" if part in PLACES else f".{name}".endswith(f".{part}")
        for part in modules.split(",")
    )


class ModuleShape(NamedTuple):
    """The weight of a Linear or Conv2d."""

    out: int
    in_: int
    kernel: int  # side of the square kernel of a Conv2d; 0 for a Linear

    def lora_parameters(self, rank: int) -> int:
        """The number of values in A and B. For a Conv2d, A has the k x k kernel and B is 1 x 1."""
        return rank * (self.in_ * max(self.kernel, 1) ** 2 + self.out)


class TextEncoder(NamedTuple):
    """The sizes of a CLIP text encoder that decide the shapes of its modules."""

    layers: int
    width: int
    mlp: int  # width between fc1 and fc2
    heads: int
    projection: bool = False  # whether it ends with text_projection, width -> width
    activation: str = "gelu"
    vocabulary: int = 49408  # number of different tokens
    length: int = 77  # tokens in a prompt
    padding: str = "!"  # the token that pads a short prompt

    def config(self) -> dict[str, Any]:
        """Arguments for transformers' CLIPTextConfig. The largest token is the end of the text, as in CLIP."""
        return {
            "hidden_size": self.width,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "hidden_act": self.activation,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.length,
            "projection_dim": self.width,
            "eos_token_id": 2,
        }

    def modules(self) -> dict[str, ModuleShape]:
        """Name in checkpoints -> shape, for every Linear, in the network's order.

        transformers 5 leaves out the level `text_model.` in the module names of a CLIPTextModel. Its files keep it.
        """
        square = ModuleShape(self.width, self.width, 0)
        layer = {f"self_attn.{name}": square for name in ("k_proj", "v_proj", "q_proj", "out_proj")}
        layer |= {"mlp.fc1": ModuleShape(self.mlp, self.width, 0), "mlp.fc2": ModuleShape(self.width, self.mlp, 0)}
        names = {f"text_model.encoder.layers.{i}.{name}": layer[name] for i in range(self.layers) for name in layer}
        return names | ({"text_projection": square} if self.projection else {})


class Naming(NamedTuple):
    """The names of a family in the metadata and keys of LoRA files, as kohya's sd-scripts introduced them.

    Source: github.com/kohya-ss/sd-scripts (library/model_util.py, sdxl_model_util.py, sai_model_spec.py). It has no
    SSD-1B: `segmind-stable-diffusion-1b` is SwarmUI's name. AUTOMATIC1111 takes every name that begins with `sdxl_`
    for SDXL.
    """

    version: str  # ss_base_model_version of epsilon models
    architecture: str  # modelspec.architecture of epsilon models
    v_version: str = ""  # ss_base_model_version of v-prediction models; "" = version
    v_architecture: str = ""
    original: bool = False  # whether the UNet's modules have the names of the original code (fewstep.families.ldm)


@dataclass(frozen=True)
class Family:
    """One family of models: its name and the configs of its networks."""

    name: str
    unet: Mapping[str, Any]  # arguments for diffusers' UNet2DConditionModel
    text_encoders: tuple[TextEncoder, ...]
    vae: Mapping[str, Any]  # arguments for diffusers' AutoencoderKL
    prediction_type: str = "epsilon"
    naming: Naming | None = None  # None = no other tool knows it

    def modules(self) -> dict[str, ModuleShape]:
        """Name -> shape, in the UNet's order, for the UNet's modules that LCM-LoRA adapts."""
        return {name: shape for name, shape in _table(self.name).items() if is_target(name)}

    def all_modules(self) -> dict[str, ModuleShape]:
        """Name -> shape, in the networks' order, for every module that some LoRA may adapt.

        The UNet's names have no prefix. Those of the text encoders begin with `text_encoder.` and `text_encoder_2.`.
        """
        modules = dict(_table(self.name))
        for prefix, encoder in zip(("text_encoder", "text_encoder_2"), self.text_encoders, strict=False):
            modules |= {f"{prefix}.{name}": shape for name, shape in encoder.modules().items()}
        return modules


@cache
def _table(name: str) -> dict[str, ModuleShape]:
    rows = json.loads((TABLES / f"{name}.json").read_text(encoding="utf-8"))
    return {module: ModuleShape(*shape) for module, shape in rows.items()}


_SD15 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
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

END = "<|endoftext|>"
_CLIP_L = TextEncoder(layers=12, width=768, mlp=3072, heads=12, activation="quick_gelu", padding=END)
_OPENCLIP_H = TextEncoder(layers=23, width=1024, mlp=4096, heads=16)  # SD 2.1 leaves out the last of 24 layers
_OPENCLIP_BIG_G = TextEncoder(layers=32, width=1280, mlp=5120, heads=20, projection=True)
_EMOJI_TEXT = TextEncoder(4, 128, 512, heads=4, activation="quick_gelu", vocabulary=2000, length=32, padding=END)


def _vae(widths: tuple[int, ...], size: int, scaling_factor: float, **more: Any) -> dict[str, Any]:
    return {
        "sample_size": size,
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "layers_per_block": 2,
        "latent_channels": 4,
        "scaling_factor": scaling_factor,
    } | more


_SD_VAE = _vae((128, 256, 512, 512), 512, 0.18215)
_SDXL_VAE = _vae((128, 256, 512, 512), 1024, 0.13025)
_EMOJI_VAE = _vae((16, 32, 64, 128), 128, 0.52504, layers_per_block=1, norm_num_groups=8, mid_block_add_attention=False)
SCHEDULER = {  # Stable Diffusion's scheduler config, the same for all families
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}

_SD1_NAMES = Naming("sd_v1", "stable-diffusion-v1", v_version="sd_v1_v")
_SD2_NAMES = Naming("sd_v2", "stable-diffusion-v2-512", "sd_v2_v", "stable-diffusion-v2-768-v")
_SDXL_NAMES = Naming("sdxl_base_v1-0", "stable-diffusion-xl-v1-base", original=True)
_SSD_1B_NAMES = Naming("sdxl_ssd-1b", "segmind-stable-diffusion-1b", original=True)

FAMILIES = {
    family.name: family
    for family in (
        Family("sd15", _SD15, (_CLIP_L,), _SD_VAE, naming=_SD1_NAMES),
        Family("sd21", _SD21, (_OPENCLIP_H,), _SD_VAE, "v_prediction", _SD2_NAMES),  # 2.1 at 768 pixels
        Family("ssd-1b", _SSD_1B, (_CLIP_L, _OPENCLIP_BIG_G), _SDXL_VAE, naming=_SSD_1B_NAMES),
        Family("sdxl", _SDXL, (_CLIP_L, _OPENCLIP_BIG_G), _SDXL_VAE, naming=_SDXL_NAMES),
        Family("emoji", _EMOJI, (_EMOJI_TEXT,), _EMOJI_VAE, "v_prediction"),
    )
}


def family_of(shapes: Mapping[str, ModuleShape]) -> str:
    """The label of the family that has exactly these target modules and shapes; `custom` if none has.

    Names and shapes decide whether a LoRA fits. The label is for people.
    """
    targets = {name: shape for name, shape in shapes.items() if is_target(name)}
    return next((family.name for family in FAMILIES.values() if family.modules() == targets), "custom")
