"""Tiny random pipelines of diffusers, of every kind and family that accelerate is for, and what to call them with."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    LCMScheduler,
    MotionAdapter,
    T2IAdapter,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from fewstep.bridge.accelerate import layers_of_pipeline
from fewstep.lora.layers import shape_of
from fewstep.lora.low_rank import Adapter, LowRank
from fewstep.lora.recipe import Recipe
from fewstep.lora.writing import save_adapter
from tests.tiny import tiny_tokenizer, tiny_unet

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
NOT_IN_CHECKPOINTS = ("motion_modules", "_ip.", "encoder_hid_proj")
LCM = Recipe(method="lcd", solver="lcm", steps=4, guidance_scale=1.0, k=20)
_TWO_ENCODERS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "attention_head_dim": (2, 4),
    "cross_attention_dim": 32,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 16,
}


class FamilyKind(NamedTuple):
    """What makes a tiny model of a family."""

    unet: Mapping[str, Any]
    prediction: str
    encoders: int


FAMILIES = {
    "sd15": FamilyKind({}, "epsilon", 1),
    "sd21": FamilyKind({"use_linear_projection": True, "attention_head_dim": (2, 4)}, "v_prediction", 1),
    "ssd-1b": FamilyKind(
        _TWO_ENCODERS | {"mid_block_type": "UNetMidBlock2D", "reverse_transformer_layers_per_block": ((2, 1), 1)},
        "epsilon",
        2,
    ),
    "sdxl": FamilyKind(_TWO_ENCODERS, "epsilon", 2),
}


@cache
def tokenizer() -> Any:
    """The tiny tokenizer, in memory."""
    with TemporaryDirectory() as folder:
        return tiny_tokenizer(Path(folder) / "tokenizer")


def text_encoder(kind: type = CLIPTextModel) -> Any:
    """A CLIP text encoder of two layers."""
    words = tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, projection_dim=16,
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.eos_token_id,
    )  # fmt: skip
    return kind(config).eval()


def parts_of(family: str, seed: int = 0, **unet: object) -> dict[str, Any]:
    """The components that all pipelines of a family have."""
    torch.manual_seed(seed)
    kind = FAMILIES[family]
    vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4, sample_size=16,
        mid_block_add_attention=False,
    )  # fmt: skip
    network = tiny_unet(**({**kind.unet, **unet}))
    scheduler = DDIMScheduler(
        **STABLE_DIFFUSION, prediction_type=kind.prediction, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    parts = {"vae": vae.eval(), "unet": network.eval(), "scheduler": scheduler}
    parts |= {"text_encoder": text_encoder(), "tokenizer": tokenizer()}
    if kind.encoders == 2:
        return parts | {"text_encoder_2": text_encoder(CLIPTextModelWithProjection), "tokenizer_2": tokenizer()}
    return parts | {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def picture(seed: int = 0, size: int = 16) -> Image.Image:
    """Random colours."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def mask() -> Image.Image:
    """The left half is drawn anew."""
    half = np.zeros((16, 16), np.uint8)
    half[:, :8] = 255
    return Image.fromarray(half)


# --- what the kinds of pipelines have more -----------------------------------------------------------------


def controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """Whose outputs are not zero, as they are before training."""
    network = ControlNetModel.from_unet(unet, conditioning_channels=3)
    changed = ControlNetModel.from_config(dict(network.config) | {"conditioning_embedding_out_channels": (8, 8)})
    for parameter in changed.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return changed.eval()


def t2i_adapter(two_encoders: bool) -> T2IAdapter:
    """One that fits the tiny UNets, of which SDXL's adds to its first block after the downsampling."""
    if two_encoders:
        channels, factor, kind = [16, 32, 32, 32], 4, "full_adapter_xl"
    else:
        channels, factor, kind = [16, 32], 2, "full_adapter"
    return T2IAdapter(3, channels, num_res_blocks=1, downscale_factor=factor, adapter_type=kind).eval()


def motion_adapter(two_encoders: bool) -> MotionAdapter:
    """One that fits the tiny UNets."""
    return MotionAdapter(
        block_out_channels=(16, 32), motion_layers_per_block=1, motion_num_attention_heads=2,
        motion_norm_num_groups=8, use_motion_mid_block=not two_encoders,
    ).eval()  # fmt: skip


def with_ip_adapter(pipe: Any) -> Any:
    """The pipeline with a random IP-Adapter, of four image tokens."""
    wide, width, number = 8, pipe.unet.config.cross_attention_dim, 1
    weights: dict[str, torch.Tensor] = {}
    for name in pipe.unet.attn_processors:
        if "attn2" in name:
            attention = pipe.unet.get_submodule(name.removesuffix(".processor"))
            for letter in "kv":
                weights[f"{number}.to_{letter}_ip.weight"] = torch.randn(attention.inner_dim, width) * 0.1
            number += 2
    projection = {
        "proj.weight": torch.randn(4 * width, wide), "proj.bias": torch.zeros(4 * width),
        "norm.weight": torch.ones(width), "norm.bias": torch.zeros(width),
    }  # fmt: skip
    pipe.unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": weights}])
    return pipe


class PipelineRow(NamedTuple):
    """One kind of pipeline."""

    title: str
    one: str  # diffusers' class for models with one text encoder; "" if there is none
    two: str  # and with two
    more: Callable[[dict[str, Any], bool], dict[str, Any]] = lambda parts, two: {}
    call: Mapping[str, Any] = {}
    then: Callable[[Any], Any] = lambda pipe: pipe
    unet: Mapping[str, Any] = {}
    without: tuple[str, ...] = ()
    fails: tuple[str, ...] = ()  # families that diffusers' class cannot be built for


def _control(parts: dict[str, Any], two: bool) -> dict[str, Any]:
    return {"controlnet": controlnet(parts["unet"])}


def _t2i(parts: dict[str, Any], two: bool) -> dict[str, Any]:
    return {"adapter": t2i_adapter(two)}


def _motion(parts: dict[str, Any], two: bool) -> dict[str, Any]:
    return {"motion_adapter": motion_adapter(two)}


def _motion_control(parts: dict[str, Any], two: bool) -> dict[str, Any]:
    return _motion(parts, two) | _control(parts, two)


def _lcm_scheduler(parts: dict[str, Any], two: bool) -> dict[str, Any]:
    return {"scheduler": LCMScheduler.from_config(parts["scheduler"].config)}


def _perturbed_above(pipe: Any) -> Any:
    pipe.set_pag_applied_layers("up")  # SSD-1B has no attention in the middle
    return pipe


SD, XL = "StableDiffusion", "StableDiffusionXL"
IMAGE = {"image": picture(), "strength": 0.5}
INPAINT = {"image": picture(), "mask_image": mask(), "strength": 0.9, "height": 16, "width": 16}
HINT = {"height": 16, "width": 16}
FRAMES = {"num_frames": 2, "height": 16, "width": 16}
SAFETY = ("safety_checker", "requires_safety_checker")
ROWS = [
    PipelineRow("text-to-image", f"{SD}Pipeline", f"{XL}Pipeline"),
    PipelineRow("image-to-image", f"{SD}Img2ImgPipeline", f"{XL}Img2ImgPipeline", call=IMAGE),
    PipelineRow("inpainting", f"{SD}InpaintPipeline", f"{XL}InpaintPipeline", call=INPAINT),
    PipelineRow(
        "inpainting, UNet of 9 channels", f"{SD}InpaintPipeline", f"{XL}InpaintPipeline", call=INPAINT,
        unet={"in_channels": 9},
    ),
    PipelineRow(
        "InstructPix2Pix", f"{SD}InstructPix2PixPipeline", f"{XL}InstructPix2PixPipeline", unet={"in_channels": 8},
        call={"image": picture()},
    ),
    PipelineRow(
        "ControlNet", f"{SD}ControlNetPipeline", f"{XL}ControlNetPipeline", _control, HINT | {"image": picture(1)}
    ),
    PipelineRow(
        "ControlNet, image-to-image", f"{SD}ControlNetImg2ImgPipeline", f"{XL}ControlNetImg2ImgPipeline", _control,
        HINT | IMAGE | {"control_image": picture(1)},
    ),
    PipelineRow(
        "ControlNet, inpainting", f"{SD}ControlNetInpaintPipeline", f"{XL}ControlNetInpaintPipeline", _control,
        INPAINT | {"control_image": picture(1)},
    ),
    PipelineRow("T2I-Adapter", f"{SD}AdapterPipeline", f"{XL}AdapterPipeline", _t2i, HINT | {"image": picture(1)}),
    PipelineRow(
        "IP-Adapter", f"{SD}Pipeline", f"{XL}Pipeline", then=with_ip_adapter,
        call={"guidance_scale": 1.0, "ip_adapter_image_embeds": [torch.ones(1, 1, 8)]},
    ),
    PipelineRow(
        "AnimateDiff", "AnimateDiffPipeline", "AnimateDiffSDXLPipeline", _motion, FRAMES, without=SAFETY,
        fails=("ssd-1b",),
    ),
    PipelineRow(
        "AnimateDiff, video-to-video", "AnimateDiffVideoToVideoPipeline", "", _motion,
        {"video": [picture(i) for i in range(2)], "strength": 0.5, "height": 16, "width": 16}, without=SAFETY,
    ),
    PipelineRow(
        "AnimateDiff, ControlNet", "AnimateDiffControlNetPipeline", "", _motion_control,
        FRAMES | {"conditioning_frames": [picture(i) for i in range(2)]}, without=SAFETY,
    ),
    PipelineRow("perturbed attention (PAG)", f"{SD}PAGPipeline", f"{XL}PAGPipeline", then=_perturbed_above),
    PipelineRow(
        "latent consistency model", "LatentConsistencyModelPipeline", "", _lcm_scheduler,
        unet={"time_cond_proj_dim": 16},
    ),
]  # fmt: skip


def build(row: PipelineRow, family: str, **changes: Any) -> Any:
    """The row's pipeline of that family."""
    two = FAMILIES[family].encoders == 2
    parts = parts_of(family, **row.unet) | changes
    parts |= row.more(parts, two)
    kept = {name: part for name, part in parts.items() if name not in row.without}
    pipe = row.then(getattr(diffusers, row.two if two else row.one)(**kept))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def row_named(title: str) -> PipelineRow:
    """The row of that title."""
    return next(row for row in ROWS if row.title == title)


def draw(pipe: Any, row: PipelineRow, **changes: Any) -> torch.Tensor:
    """What the pipeline draws: images or frames, as numbers."""
    generator = torch.Generator().manual_seed(5)
    done = pipe(prompt="a cat", **(dict(row.call) | {"output_type": "np", "generator": generator} | changes))
    return torch.from_numpy(np.asarray(done.frames if hasattr(done, "frames") else done.images))


def random_lora(path: Path, pipe: Any, recipe: Recipe = LCM, seed: int = 0, without: str = "") -> Path:
    """A LoRA file of rank 2 for what is in checkpoints but for the first convolution, large enough to be seen."""
    draw_from = torch.Generator().manual_seed(seed)
    updates = {}
    for name, layer in layers_of_pipeline(pipe).items():
        shape = shape_of(layer)
        left_out = name == "conv_in" or any(other in name for other in NOT_IN_CHECKPOINTS)
        if shape is None or left_out or (without and without in name):
            continue
        kernel = (shape.kernel,) * 2 if shape.kernel else ()
        A = torch.randn(2, shape.in_, *kernel, generator=draw_from) / (shape.in_ * max(shape.kernel, 1) ** 2) ** 0.5
        updates[name] = LowRank(A, torch.randn(shape.out, 2, *(1,) * len(kernel), generator=draw_from) * 0.1)
    save_adapter(path, Adapter(updates), recipe, torch.float32)
    return path
