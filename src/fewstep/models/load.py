"""A Stable Diffusion model folder (diffusers' layout) as parts ready to use. No code from the folder runs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from fewstep.assets import shipped_model
from fewstep.diffusion.guidance import Conditioning
from fewstep.diffusion.prediction import Prediction, prediction_named
from fewstep.diffusion.schedule import NoiseSchedule, schedule_from_config
from fewstep.errors import FewstepError
from fewstep.families import family_of
from fewstep.hub import resolved
from fewstep.io import read_json, sha256_bytes, sha256_file
from fewstep.lora.dialects import text_module
from fewstep.lora.layers import layers_of, module_shapes
from fewstep.lora.recipe import Recipe

for _logging in (diffusers_logging, transformers_logging):
    _logging.set_verbosity_error()  # what matters of a folder's faults is raised, in our words
    _logging.disable_progress_bar()

RECIPE_FILE = "fewstep.json"  # beside model_index.json, in models that fewstep distilled whole
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Model:
    """The parts of a model, in evaluation mode, nothing requiring gradients."""

    folder: Path
    unet: Any  # UNet2DConditionModel
    vae: Any  # AutoencoderKL
    text_encoder: Any  # CLIPTextModel
    tokenizer: Any  # CLIPTokenizer
    schedule: NoiseSchedule
    prediction_type: str
    recipe: Recipe | None

    @property
    def prediction(self) -> Prediction:
        """What the network's output means."""
        return prediction_named(self.prediction_type)

    @property
    def family(self) -> str:
        """The family's label, `custom` for shapes of no known one."""
        return family_of(module_shapes(self.unet))

    def layers(self) -> dict[str, Any]:
        """Every module that a LoRA can adapt: the UNet's, and the text encoder's named as in checkpoints."""
        text = layers_of(self.text_encoder)
        return layers_of(self.unet) | {f"text_encoder.{text_module(name)}": layer for name, layer in text.items()}

    @property
    def factor(self) -> int:
        """Pixels per latent, in each direction."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def size(self) -> int:
        """Side of the square images the model was trained on, in pixels."""
        return int(self.unet.config.sample_size) * self.factor

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
    def embed(self, prompts: Sequence[str]) -> Conditioning:
        """Text embeddings (B, L, D) of the prompts, cut at the text encoder's length."""
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings),
            truncation=True,
            return_tensors="pt",
        )
        return Conditioning(self.text_encoder(tokens.input_ids.to(self.text_encoder.device))[0].float())

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Latents (B, C, H, W) float32, scaled: the posterior's mean of pixels (B, 3, 8H, 8W) in [-1, 1]."""
        mean: Tensor = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist.mean.float()
        return (mean - self._shift) * self._scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, 8H, 8W) float32 in [-1, 1] from scaled latents; in float32 if half precision overflows."""
        raw = latents / self._scale + self._shift
        pixels: Tensor = self.vae.decode(raw.to(self.vae.dtype)).sample.float()
        if not pixels.isfinite().all() and self.vae.dtype != torch.float32:
            pixels = self.vae.to(torch.float32).decode(raw.float()).sample
        return pixels.clamp(-1, 1)

    def text_sha256(self) -> str:
        """Hash of what turns captions into embeddings: the text encoder's and tokenizer's files."""
        parts = [self.folder / part for part in ("text_encoder", "tokenizer")]
        files = sorted(path for part in parts for path in part.rglob("*") if path.is_file())
        return sha256_bytes(*(f"{f.relative_to(self.folder)}:{sha256_file(f)}".encode() for f in files))

    def unet_sha256(self) -> str:
        """Hash of the network's weight files."""
        return sha256_bytes(*(sha256_file(f).encode() for f in sorted((self.folder / "unet").glob("*.safetensors"))))


def encoder_sha256(vae: Any) -> str:
    """Hash of what turns images into latents: an AutoencoderKL's scaling and encoder, rounded to half precision.

    A decoder trained further on the same encoder leaves it as it is.
    """
    weights = {name: x for name, x in vae.state_dict().items() if name.startswith(("encoder.", "quant_conv."))}
    parts = (name.encode() + x.detach().cpu().half().numpy().tobytes() for name, x in sorted(weights.items()))
    return sha256_bytes(f"{vae.config.scaling_factor} {vae.config.shift_factor}".encode(), *parts)


def pick_device(name: str) -> torch.device:
    """The device for `auto`, cpu, cuda or mps; FewstepError when it is not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if there[kind]))
    if not there[name]:
        raise FewstepError(
            f"--device {name} is not available on this machine", "use --device auto, or see fewstep doctor"
        )
    return torch.device(name)


def load_model(name: str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Model:
    """The embedded model, or the one in the folder `name`. Raises FewstepError naming what is missing or unreadable."""
    folder = shipped_model(name) or resolved(name)
    index = _index(folder, name)
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        if not (folder / part).is_dir():
            raise FewstepError(f"model folder {folder} has no {part} folder", "copy the whole model folder again")
    if "text_encoder_2" in index:
        raise FewstepError(f"{folder} is an SDXL-like model (two text encoders)", "use an SD 1.x or 2.x-like folder")
    schedule, prediction_type = _schedule(folder / "scheduler" / "scheduler_config.json")
    return Model(
        folder=folder,
        unet=_part(UNet2DConditionModel, folder / "unet", dtype, device),
        vae=_part(AutoencoderKL, folder / "vae", dtype, device),
        text_encoder=_part(CLIPTextModel, folder / "text_encoder", dtype, device),
        tokenizer=_tokenizer(folder / "tokenizer"),
        schedule=schedule,
        prediction_type=prediction_type,
        recipe=_recipe(folder / RECIPE_FILE),
    )


def _index(folder: Path, name: str) -> dict[str, Any]:
    if not folder.exists():
        raise FewstepError(
            f"model {name} not found",
            "give --model the path of a Stable Diffusion folder, or emoji for the embedded model",
        )
    if not (folder / "model_index.json").is_file():
        raise FewstepError(
            f"{folder} is not a Stable Diffusion model folder: it has no model_index.json",
            "the folder that holds unet, vae, text_encoder, tokenizer and scheduler is meant",
        )
    index = read_json(folder / "model_index.json", "model index")
    if not isinstance(index, dict):
        raise FewstepError(f"{folder}/model_index.json is not a model index", "copy the whole model folder again")
    return index


def _schedule(path: Path) -> tuple[NoiseSchedule, str]:
    config = read_json(path, "scheduler config")
    try:
        name = config.get("prediction_type", "epsilon")
        prediction_named(name)
        schedule = schedule_from_config(config)
    except (AttributeError, TypeError, ValueError) as error:
        raise FewstepError(f"{path} is no scheduler config ({error})", "copy the whole model folder again") from error
    if schedule.zero_terminal_snr and name == "epsilon":
        raise FewstepError(
            f"{path} has epsilon prediction on a zero-terminal-SNR schedule, where the noise says nothing of the image",
            "such models predict v: set prediction_type to v_prediction, or rescale_betas_zero_snr to false",
        )
    return schedule, name


def _recipe(path: Path) -> Recipe | None:
    if not path.exists():
        return None
    try:
        return Recipe(**read_json(path, "sampling recipe"))
    except (ValidationError, TypeError) as error:
        raise FewstepError(f"the sampling recipe {path} is damaged", "copy the whole model folder again") from error


def _part(kind: Any, folder: Path, dtype: torch.dtype, device: torch.device | str) -> Any:
    try:
        part, info = kind.from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FewstepError(
            f"cannot load {folder} ({reason})",
            "fewstep loads diffusers folders with .safetensors weights; copy it again",
        ) from error
    if info["missing_keys"]:  # which the libraries would leave random
        raise FewstepError(
            f"cannot load {folder} (its weights lack {min(info['missing_keys'])})", "copy the whole model folder again"
        )
    return part.to(device).eval().requires_grad_(False)


def _tokenizer(folder: Path) -> Any:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise FewstepError(f"cannot load {folder} (it has no vocabulary)", "copy the tokenizer folder again")
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, json.JSONDecodeError, TypeError) as error:
        raise FewstepError(
            f"cannot load {folder} ({type(error).__name__})", "copy the tokenizer folder again"
        ) from error
