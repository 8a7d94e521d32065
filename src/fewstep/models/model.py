"""A Stable Diffusion model as parts ready to use: conditioning from text, latents from pixels and back."""

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
from fewstep.models.fitting import INPAINTING_CHANNELS, PIXEL_CHANNELS
from fewstep.models.safety import SafetyChecker
from fewstep.models.text import embedded, embedded_twice, no_text, sizes_of
from fewstep.models.weights import unet_sha256

TEXT_PARTS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
PARTS = ("unet", "vae", "scheduler", *TEXT_PARTS)  # folders of a model in diffusers' layout
AGAIN = f"its weights may be damaged: get the model again; with {option('dtype')} fp16, try bf16 or fp32"


@dataclass(frozen=True)
class Model:
    """The parts of a model, in evaluation mode. No parameter requires gradients."""

    path: Path  # a folder in diffusers' layout, or a single file in the original one
    unet: Any  # UNet2DConditionModel; UNet2DModel for a model in pixel space
    vae: Any  # AutoencoderKL; None for a model in pixel space, whose latents are the pixels
    text_encoder: Any  # CLIPTextModel; None for a model without text
    tokenizer: Any  # CLIPTokenizer; None without text
    schedule: NoiseSchedule
    prediction_type: str
    recipe: Recipe | None = None
    text_encoder_2: Any = None  # CLIPTextModelWithProjection, only for SDXL
    tokenizer_2: Any = None
    zero_empty: bool = False  # whether zeros are the embedding of an empty prompt, as SDXL's base model expects
    safety_checker: SafetyChecker | None = None  # None when the folder has none
    clip: float | None = None  # sampling cuts estimates of x_0 to [-clip, clip]; None = it leaves them as they are

    @property
    def prediction(self) -> Prediction:
        """The meaning of the network's output."""
        return prediction_named(self.prediction_type)

    @property
    def family(self) -> str:
        """The family's label; `custom` when the shapes are not those of a known family."""
        return family_of(module_shapes(self.unet))

    @property
    def inpaints(self) -> bool:
        """Whether the network takes a mask and the kept latents as well as x."""
        return int(self.unet.config.in_channels) == INPAINTING_CHANNELS

    @property
    def embeds_guidance(self) -> bool:
        """Whether the network takes guidance as an input, as LCM's do."""
        return self.unet.config.get("time_cond_proj_dim") is not None

    @property
    def takes_text(self) -> bool:
        """Whether the network takes text. A model in pixel space does not."""
        return self.text_encoder is not None

    def layers(self) -> dict[str, Any]:
        """Name in checkpoints -> module, for every module of the UNet and the text encoders that a LoRA can adapt."""
        networks = {part: network for part in COMPONENTS if (network := getattr(self, part)) is not None}
        return {
            module_name(part, name): layer for part, net in networks.items() for name, layer in layers_of(net).items()
        }

    @property
    def factor(self) -> int:
        """Pixels per latent, in each direction."""
        return 1 if self.vae is None else int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def multiple(self) -> int:
        """The sides of a picture, in pixels, are multiples of this: a UNet2DModel halves them between its blocks."""
        return self.factor if self.vae is not None else int(2 ** (len(self.unet.config.block_out_channels) - 1))

    @property
    def latent_channels(self) -> int:
        """Channels of the latents: the autoencoder's, or the 3 of pixels."""
        return PIXEL_CHANNELS if self.vae is None else int(self.vae.config.latent_channels)

    @property
    def height_and_width(self) -> tuple[int, int]:
        """The size, in pixels, of the pictures that the model was trained on; the family's when its config has none."""
        stated = self.unet.config.sample_size
        if stated is None and self.family in FAMILIES:
            stated = FAMILIES[self.family].unet["sample_size"]
        if stated is None:
            stated = self.vae.config.sample_size // self.factor
        height, width = stated if isinstance(stated, list | tuple) else (stated, stated)
        return height * self.factor, width * self.factor

    @property
    def size(self) -> int:
        """The side, in pixels, of the square pictures that the model was trained on."""
        return min(self.height_and_width)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """The shape (C, h, w) of the latents of a picture of height x width pixels."""
        return self.latent_channels, height // self.factor, width // self.factor

    @property
    def device(self) -> torch.device:
        """The network's device."""
        return torch.device(self.unet.device)

    @property
    def _scale(self) -> float:
        return float(self.vae.config.scaling_factor)

    @property
    def _shift(self) -> float:
        return float(self.vae.config.shift_factor or 0.0)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str], height: int | None = None, width: int | None = None) -> Conditioning:
        """The conditioning of B prompts. Longer prompts are cut at the text encoder's length.

        height, width: size of the picture in pixels, which SDXL's network takes too; None = the model's own size.
        """
        if self.text_encoder is None:
            return no_text(len(prompts)).to(self.device)
        if self.text_encoder_2 is None:
            return embedded(prompts, self.tokenizer, self.text_encoder)
        tokenizers, encoders = (self.tokenizer, self.tokenizer_2), (self.text_encoder, self.text_encoder_2)
        embedded_text = embedded_twice(prompts, tokenizers, encoders, self.zero_empty)
        own_height, own_width = self.height_and_width
        sizes = sizes_of(height or own_height, width or own_width)
        return embedded_text._replace(sizes=sizes.expand(len(prompts), -1).to(embedded_text.text.device))

    def encode(self, pixels: Tensor) -> Tensor:
        """Scaled latents (B, C, H, W), float32: the posterior's mean for pixels (B, 3, 8H, 8W) in [-1, 1].

        Those of a model in pixel space are the pixels. Computed again in float32 if half precision overflows. Raises
        FewstepError if the result is still not finite.
        """
        return self.posterior(pixels)[0]

    @torch.no_grad()
    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of the latents, as `encode` gives it, and their standard deviation, which is 0 in pixel space."""
        if self.vae is None:
            values = pixels.to(self.device, torch.float32).contiguous()
            return values, torch.zeros_like(values)

        def encoded(x: Tensor) -> Tensor:
            posterior = self.vae.encode(x).latent_dist
            return torch.cat([posterior.mean, posterior.std], dim=1)

        mean, deviation = self._through(encoded, pixels.to(self.vae.device)).chunk(2, dim=1)
        return ((mean - self._shift) * self._scale).contiguous(), (deviation * self._scale).contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, 8H, 8W), float32 in [-1, 1], of scaled latents (B, C, H, W).

        Computed again in float32 if half precision overflows. Raises FewstepError if the result is still not finite.
        """
        if self.vae is None:
            return latents.float().clamp(-1, 1).contiguous()
        raw = latents / self._scale + self._shift
        return self._through(lambda x: self.vae.decode(x).sample, raw).clamp(-1, 1).contiguous()

    def _through(self, half: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The output of one half of the autoencoder for x, float32 and finite."""
        made = half(ordered(x.to(self.vae.dtype))).float()
        if not made.isfinite().all() and self.vae.dtype != torch.float32:
            self.vae.to(torch.float32)
            made = half(ordered(x.float()))
        if not made.isfinite().all():
            raise FewstepError(f"the autoencoder of {self.path} gives values that are not finite", AGAIN)
        return made

    def text_sha256(self) -> str:
        """Hash of the files that turn captions into embeddings: text encoders and tokenizers."""
        return parts_sha256(self.path, TEXT_PARTS)

    def unet_sha256(self) -> str:
        """Hash of the network's weight files; for a single file, of the whole file."""
        return unet_sha256(self.path)


def ordered(values: Tensor) -> Tensor:
    """The same values (B, C, H, W). On a CPU they are in channels-last order, in which an autoencoder runs faster."""
    return values.contiguous(memory_format=torch.channels_last) if values.device.type == "cpu" else values


def free_encoders(model: Model, keep: bool = False) -> None:
    """Free the memory of the autoencoder and the text encoders, which cannot compute any more then.

    keep: whether their weights stay on the CPU, because the model is written to a folder later.
    """
    for part in (model.vae, model.text_encoder, model.text_encoder_2):
        if part is not None:
            part.to("cpu" if keep else "meta")
    if model.device.type == "cuda":
        torch.cuda.empty_cache()


@doing("hashing the model's files")
def parts_sha256(path: Path, parts: Sequence[str] = PARTS) -> str:
    """Hash of all files of these parts of a model folder; for a single file, of the whole file."""
    if path.is_file():
        return sha256_file(path)
    found = [file for part in parts for file in (path / part).rglob("*")]
    if "unet" in parts and not (path / "unet").is_dir():
        found += path.glob("*.*")  # a model in pixel space whose network is at the folder's top
    files = sorted(file for file in found if file.is_file())
    return sha256_bytes(*(f"{f.relative_to(path).as_posix()}:{sha256_file(f)}\n".encode() for f in files))


@doing("hashing the autoencoder")
def encoder_sha256(vae: Any) -> str:
    """Hash of the values that turn images into latents: an AutoencoderKL's scaling, and its encoder in half precision.

    vae: None for pixels as they are. Training only the decoder further does not change the hash.
    """
    if vae is None:
        return "pixels"
    weights = {name: x for name, x in vae.state_dict().items() if name.startswith(("encoder.", "quant_conv."))}
    parts = (name.encode() + x.detach().cpu().half().numpy().tobytes() for name, x in sorted(weights.items()))
    return sha256_bytes(f"{vae.config.scaling_factor} {vae.config.shift_factor}".encode(), *parts)
