"""A tiny random SD 1.x folder and a folder of captioned images: everything real but the size."""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from fewstep.families import SCHEDULER

WORDS = ["a", "cat", "dog", "red", "blue", "house", "of", "the", "drawing", "fish"]


def tiny_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer that knows letters and a few words."""
    letters = [chr(i) for i in range(ord("a"), ord("z") + 1)]
    vocabulary = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def tiny_unet(**changes: object) -> UNet2DConditionModel:
    """A UNet with every one of the 14 LoRA targets."""
    config = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**(config | changes))


def tiny_model(folder: Path, seed: int = 0, unet: dict[str, object] | None = None, **scheduler: object) -> Path:
    """A complete random SD 1.x-like model folder: 16 px images, 8x8 latents of 4 channels."""
    torch.manual_seed(seed)
    vae = tiny_vae()
    tokenizer = tiny_tokenizer(folder / "tokenizer-files")
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(tiny_text(tokenizer)),
        tokenizer=tokenizer,
        unet=tiny_unet(**(unet or {})),
        scheduler=stable_diffusion_scheduler(**scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return folder


def tiny_pixels(folder: Path, seed: int = 0, unet: dict[str, object] | None = None, **scheduler: object) -> Path:
    """A random folder of DDPMPipeline: a UNet2DModel for 16 px images, without text and without an autoencoder."""
    torch.manual_seed(seed)
    config = {
        "sample_size": 16,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 8,
        "attention_head_dim": 8,
    }
    network = UNet2DModel(**(config | (unet or {})))
    DDPMPipeline(network, DDPMScheduler(**scheduler)).save_pretrained(folder)
    return folder


SDXL = {  # what makes a tiny UNet one of SDXL's kind
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 24,
    "cross_attention_dim": 16 + 24,
    "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2),
}


def tiny_text(tokenizer: CLIPTokenizer, width: int = 16) -> CLIPTextConfig:
    """The config of a text encoder of this width for this tokenizer."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )


def tiny_clip(folder: Path) -> Path:
    """A complete random CLIP folder: images of 16 px, 8 features."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(folder / "tokenizer-files")
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8, "projection_dim": 8}
    text = tiny_text(tokenizer).to_dict() | {"projection_dim": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_vae() -> AutoencoderKL:
    """Two pixels to a latent, in each direction."""
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        mid_block_add_attention=False,
    )


def stable_diffusion_scheduler(**changes: object) -> DDIMScheduler:
    """Stable Diffusion 1.5's."""
    return DDIMScheduler(**(SCHEDULER | changes))


def tiny_sdxl(folder: Path, seed: int = 0, unet: dict[str, object] | None = None) -> Path:
    """A complete random SDXL-like model folder: two text encoders, told sizes, 16 px images."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer(folder / "tokenizer-files")
    pipe = StableDiffusionXLPipeline(
        vae=tiny_vae(),
        text_encoder=CLIPTextModel(tiny_text(tokenizer)),
        text_encoder_2=CLIPTextModelWithProjection(tiny_text(tokenizer, 24)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=tiny_unet(**(SDXL | (unet or {}))),
        scheduler=stable_diffusion_scheduler(),
        add_watermarker=False,
    )
    pipe.save_pretrained(folder)
    return folder


def tiny_images(folder: Path, count: int = 12, size: int = 16) -> Path:
    """PNGs of random colours with captions in .txt files beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for i in range(count):
        pixels = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(f"a {WORDS[i % len(WORDS)]}")
    return folder
