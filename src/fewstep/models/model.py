"""A Stable Diffusion model as parts ready to use: text in, latents to pixels and back, what a LoRA can adapt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.diffusion.guidance import Conditioning
from fewstep.diffusion.prediction import Prediction, prediction_named
from fewstep.diffusion.schedule import NoiseSchedule
from fewstep.errors import FewstepError, option
from fewstep.events import doing
from fewstep.families import FAMILIES, family_of
from fewstep.io import sha256_bytes, sha256_file
from fewstep.lora.dialects import COMPONENTS, module_name
from fewstep.lora.layers import layers_of, module_shapes
from fewstep.lora.recipe import Recipe
from fewstep.models.fitting import INPAINTING_CHANNELS
from fewstep.models.safety import SafetyChecker
from fewstep.models.text import embedded, embedded_twice, sizes_of
from fewstep.models.weights import unet_sha256

TEXT_PARTS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
PARTS = ("unet", "vae", "scheduler", *TEXT_PARTS)  # folders of a model in diffusers' layout
AGAIN = f"its weights may be damaged: get the model again; with {option('dtype')} fp16, try bf16 or fp32"


@dataclass(frozen=True)
class Model:
    """The parts of a model, in evaluation mode, nothing requiring gradients."""

    path: Path  # a folder in diffusers' layout, or a single file in the original one
    unet: Any  # UNet2DConditionModel
    vae: Any  # AutoencoderKL
    text_encoder: Any  # CLIPTextModel
    tokenizer: Any  # CLIPTokenizer
    schedule: NoiseSchedule
    prediction_type: str
    recipe: Recipe | None = None
    text_encoder_2: Any = None  # CLIPTextModelWithProjection of SDXL
    tokenizer_2: Any = None
    zero_empty: bool = False  # whether an empty prompt is told as zeros, as SDXL's base model asks
    safety_checker: SafetyChecker | None = None  # of a folder that has one

    @property
    def prediction(self) -> Prediction:
        """What the network's output means."""
        return prediction_named(self.prediction_type)

    @property
    def family(self) -> str:
        """The family's label, `custom` for shapes of no known one."""
        return family_of(module_shapes(self.unet))

    @property
    def inpaints(self) -> bool:
        """Whether the network is told a mask and what is kept, beside x."""
        return int(self.unet.config.in_channels) == INPAINTING_CHANNELS

    def layers(self) -> dict[str, Any]:
        """Every module that a LoRA can adapt: the UNet's, and the text encoders' named as in checkpoints."""
        networks = {part: network for part in COMPONENTS if (network := getattr(self, part)) is not None}
        return {
            module_name(part, name): layer for part, net in networks.items() for name, layer in layers_of(net).items()
        }

    @property
    def factor(self) -> int:
        """Pixels per latent, in each direction."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def height_and_width(self) -> tuple[int, int]:
        """Of the pictures the model was trained on, in pixels; where its config has none, those of its family."""
        stated = self.unet.config.sample_size
        if stated is None and self.family in FAMILIES:
            stated = FAMILIES[self.family].unet["sample_size"]
        if stated is None:
            stated = self.vae.config.sample_size // self.factor
        height, width = stated if isinstance(stated, list | tuple) else (stated, stated)
        return height * self.factor, width * self.factor

    @property
    def size(self) -> int:
        """Side of the square images the model was trained on, in pixels."""
        return min(self.height_and_width)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, H, W) of the latents of a picture of so many pixels."""
        return int(self.vae.config.latent_channels), height // self.factor, width // self.factor

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return torch.device(self.unet.device)

    @property
    def _scale(self) -> float:
        return float(self.vae.config.scaling_factor)

    @property
    def _shift(self) -> float:
        return float(self.vae.config.shift_factor or 0.0)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str], height: int | None = None, width: int | None = None) -> Conditioning:
        """What the prompts (B of them) tell the network, cut at the text encoder's length.

        height, width: of the picture in pixels, which SDXL is told too; by default the model's own size.
        """
        if self.text_encoder_2 is None:
            return embedded(prompts, self.tokenizer, self.text_encoder)
        tokenizers, encoders = (self.tokenizer, self.tokenizer_2), (self.text_encoder, self.text_encoder_2)
        embedded_text = embedded_twice(prompts, tokenizers, encoders, self.zero_empty)
        own_height, own_width = self.height_and_width
        sizes = sizes_of(height or own_height, width or own_width)
        return embedded_text._replace(sizes=sizes.expand(len(prompts), -1).to(embedded_text.text.device))

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Latents (B, C, H, W) float32, scaled: the posterior's mean of pixels (B, 3, 8H, 8W) in [-1, 1].

        In float32 if half precision overflows. Raises FewstepError for what is not finite even so.
        """
        mean = self._through(lambda x: self.vae.encode(x).latent_dist.mean, pixels.to(self.vae.device))
        return ((mean - self._shift) * self._scale).contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, 8H, 8W) float32 in [-1, 1] from scaled latents.

        In float32 if half precision overflows. Raises FewstepError for what is not finite even so.
        """
        raw = latents / self._scale + self._shift
        return self._through(lambda x: self.vae.decode(x).sample, raw).clamp(-1, 1).contiguous()

    def _through(self, half: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """What a half of the autoencoder makes of x, float32 and finite."""
        made = half(ordered(x.to(self.vae.dtype))).float()
        if not made.isfinite().all() and self.vae.dtype != torch.float32:
            self.vae.to(torch.float32)
            made = half(ordered(x.float()))
        if not made.isfinite().all():
            raise FewstepError(f"the autoencoder of {self.path} gives values that are not finite", AGAIN)
        return made

    def text_sha256(self) -> str:
        """Hash of what turns captions into embeddings: the text encoders' and tokenizers' files."""
        return parts_sha256(self.path, TEXT_PARTS)

    def unet_sha256(self) -> str:
        """Hash of the network's weight files; of a single file, of all of it."""
        return unet_sha256(self.path)


def ordered(values: Tensor) -> Tensor:
    """The same (B, C, H, W); on a CPU in channels-last order, in which it runs an autoencoder faster."""
    return values.contiguous(memory_format=torch.channels_last) if values.device.type == "cpu" else values


@doing("hashing the model's files")
def parts_sha256(path: Path, parts: Sequence[str] = PARTS) -> str:
    """Hash of all files of these parts of a model folder, or of a single file."""
    if path.is_file():
        return sha256_file(path)
    files = sorted(file for part in parts for file in (path / part).rglob("*") if file.is_file())
    return sha256_bytes(*(f"{f.relative_to(path).as_posix()}:{sha256_file(f)}\n".encode() for f in files))


@doing("hashing the autoencoder")
def encoder_sha256(vae: Any) -> str:
    """Hash of what turns images into latents: an AutoencoderKL's scaling and encoder, rounded to half precision.

    A decoder trained further on the same encoder leaves it as it is.
    """
    weights = {name: x for name, x in vae.state_dict().items() if name.startswith(("encoder.", "quant_conv."))}
    parts = (name.encode() + x.detach().cpu().half().numpy().tobytes() for name, x in sorted(weights.items()))
    return sha256_bytes(f"{vae.config.scaling_factor} {vae.config.shift_factor}".encode(), *parts)
