"""The place of each tensor of a model in a single file ("checkpoint") of the original latent diffusion code."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from fewstep.families.ldm import ldm_names

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = {  # prefix of the encoder of SD 1.x, of 2.x, of SDXL's two; CLIP's or OpenCLIP's names follow it
    "text_encoder": (
        "cond_stage_model.transformer.",
        "conditioner.embedders.0.transformer.",
        "cond_stage_model.model.",
    ),
    "text_encoder_2": ("conditioner.embedders.1.model.",),
}
OPEN = ".model."  # a prefix that ends so is followed by OpenCLIP's names
LEVEL, WITHOUT_LEVEL = "text_model.", "-text_model."
UNUSED = re.compile(  # tensors of checkpoints that no network needs
    r"model_ema\..*|(.*\.)?position_ids|.*\.logit_scale|betas|(sqrt_|log_|posterior_|alphas_cumprod).*|logvar|scale_factor"
    r"|cond_stage_model\.model\.(text_projection|transformer\.resblocks\.23\..*)|denoiser\.sigmas|loss\..*"
    r"|v_pred|ztsnr|edm_.*|global_step|sd_merge_.*|__.*__"
)
_OPENCLIP = (  # transformers' spelling -> OpenCLIP's, first match
    (r"text_model\.embeddings\.token_embedding\.weight", "token_embedding.weight"),
    (r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"text_model\.final_layer_norm\.(.*)", r"ln_final.\1"),
    (r"text_model\.encoder\.layers\.(\d+)\.layer_norm(\d)\.(.*)", r"transformer.resblocks.\1.ln_\2.\3"),
    (r"text_model\.encoder\.layers\.(\d+)\.mlp\.fc1\.(.*)", r"transformer.resblocks.\1.mlp.c_fc.\2"),
    (r"text_model\.encoder\.layers\.(\d+)\.mlp\.fc2\.(.*)", r"transformer.resblocks.\1.mlp.c_proj.\2"),
    (r"text_model\.encoder\.layers\.(\d+)\.self_attn\.out_proj\.(.*)", r"transformer.resblocks.\1.attn.out_proj.\2"),
    (r"text_model\.encoder\.layers\.(\d+)\.self_attn\.[qkv]_proj\.(.*)", r"transformer.resblocks.\1.attn.in_proj_\2"),
    (r"text_projection\.weight", "text_projection"),
)  # fmt: skip
_VAE = (  # diffusers' spelling -> the original one, replaced anywhere in a name
    (r"\bconv_norm_out\b", "norm_out"),
    (r"\bdown_blocks\.(\d+)\.resnets\.(\d+)\b", r"down.\1.block.\2"),
    (r"\bdown_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"\bup_blocks\.(\d+)\.resnets\.(\d+)\b", r"up.\1.block.\2"),
    (r"\bup_blocks\.(\d+)\.upsamplers\.0\.", r"up.\1.upsample."),
    (r"\bconv_shortcut\b", "nin_shortcut"),
    (r"\bmid_block\.attentions\.0\.group_norm\b", "mid.attn_1.norm"),
    (r"\bmid_block\.attentions\.0\.to_([qkv])\b", r"mid.attn_1.\1"),
    (r"\bmid_block\.attentions\.0\.to_out\.0\b", "mid.attn_1.proj_out"),
)


class Origin(NamedTuple):
    """The place of a network's tensor in a single file."""

    key: str
    third: int | None = None  # 0, 1, 2: query, key or value, a third of the rows of one tensor; None = the whole tensor
    transposed: bool = False


def unet_origins(tensors: Iterable[str]) -> dict[str, Origin]:
    """Tensor of a diffusers UNet -> its origin. A tensor without a place in the layout is left out."""
    split = {tensor: tensor.rpartition(".") for tensor in tensors}
    names = ldm_names(dict.fromkeys(module for module, _, _ in split.values()))
    return {
        tensor: Origin(f"{UNET}{names[module]}.{leaf}")
        for tensor, (module, _, leaf) in split.items()
        if module in names
    }


def vae_origins(tensors: Iterable[str]) -> dict[str, Origin]:
    """Tensor of a diffusers AutoencoderKL -> its origin. The original counts the decoder's blocks in reverse."""
    tensors = tuple(tensors)
    last = max((int(n) for tensor in tensors for n in re.findall(r"\bup_blocks\.(\d+)", tensor)), default=0)

    def origin(tensor: str) -> Origin:
        key = re.sub(r"\bup_blocks\.(\d+)", lambda found: f"up_blocks.{last - int(found[1])}", tensor)
        key = re.sub(r"\bmid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", key)
        for pattern, original in _VAE:
            key = re.sub(pattern, original, key)
        return Origin(VAE + key)

    return {tensor: origin(tensor) for tensor in tensors}


def text_prefix(part: str, keys: Iterable[str]) -> str | None:
    """The prefix of a text encoder's names in a file with these keys; None when the file has no such encoder.

    Some files of SD 1.x leave out CLIP's level text_model. Then WITHOUT_LEVEL follows the prefix.
    """
    keys = tuple(keys)
    prefix = next((prefix for prefix in TEXT[part] if any(key.startswith(prefix) for key in keys)), None)
    if prefix is None or prefix.endswith(OPEN) or any(key.startswith(prefix + LEVEL) for key in keys):
        return prefix
    return prefix + WITHOUT_LEVEL


def text_origins(tensors: Iterable[str], prefix: str) -> dict[str, Origin]:
    """Tensor of a CLIP text encoder, named with the level text_model -> its origin. prefix: from `text_prefix`."""
    if prefix.endswith(OPEN):
        return {tensor: _openclip(tensor, prefix) for tensor in tensors}
    if prefix.endswith(WITHOUT_LEVEL):
        prefix = prefix.removesuffix(WITHOUT_LEVEL)
        return {tensor: Origin(prefix + tensor.removeprefix(LEVEL)) for tensor in tensors}
    return {tensor: Origin(prefix + tensor) for tensor in tensors}


def _openclip(tensor: str, prefix: str) -> Origin:
    for pattern, original in _OPENCLIP:
        if re.fullmatch(pattern, tensor):
            projection = re.search(r"\.([qkv])_proj\.", tensor)
            third = "qkv".index(projection[1]) if projection else None
            return Origin(prefix + re.sub(pattern, original, tensor), third, tensor == "text_projection.weight")
    raise AssertionError(tensor)
