"""A Stable Diffusion model on disk as parts ready to use. No code from its files runs."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from pydantic import ValidationError
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from fewstep.assets import shipped_model
from fewstep.diffusion.prediction import prediction_named, refuse_blind
from fewstep.diffusion.schedule import NoiseSchedule, schedule_from_config
from fewstep.errors import FewstepError
from fewstep.events import doing
from fewstep.hub import resolved
from fewstep.io import read_json
from fewstep.lora.recipe import Recipe
from fewstep.models.model import Model
from fewstep.models.safety import SafetyChecker
from fewstep.models.single_file import load_single_file

for _logging in (diffusers_logging, transformers_logging):
    _logging.set_verbosity_error()  # what matters of a folder's faults is raised, in our words
    _logging.disable_progress_bar()

RECIPE_FILE = "fewstep.json"  # beside model_index.json, in models that fewstep distilled whole
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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


@doing("loading the model")
def load_model(
    name: str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", safety: bool = True
) -> Model:
    """The embedded model, a folder in diffusers' layout, a single .safetensors file in the original one, or the hub's.

    safety: False leaves out the safety checker of a folder that has one. Raises FewstepError naming what is missing
    or unreadable.
    """
    path = shipped_model(name) or resolved(name)
    if path.is_file():
        return load_single_file(path, dtype, device)
    index = _index(path, name)
    parts: dict[str, Any] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    if "text_encoder_2" in index:
        parts["text_encoder_2"] = CLIPTextModelWithProjection
    tokenizers = [part.replace("text_encoder", "tokenizer") for part in parts if part.startswith("text_encoder")]
    for part in (*parts, *tokenizers, "scheduler"):
        if not (path / part).is_dir():
            raise FewstepError(f"model folder {path} has no {part} folder", "copy the whole model folder again")
    schedule, prediction_type = _schedule(path / "scheduler" / "scheduler_config.json")
    return Model(
        path=path,
        **{part: _part(kind, path / part, dtype, device) for part, kind in parts.items()},
        **{part: _tokenizer(path / part) for part in tokenizers},
        schedule=schedule,
        prediction_type=prediction_type,
        recipe=model_recipe(path),
        zero_empty=bool(index.get("force_zeros_for_empty_prompt", "text_encoder_2" in parts)),
        safety_checker=_safety_checker(path, device) if safety and (path / "safety_checker").is_dir() else None,
    )


def load_controlnet(name: str, model: Model) -> Any:
    """The ControlNetModel in a folder, in the type and place of the model's network, which it must fit."""
    folder = resolved(name)
    if not (folder / "config.json").is_file():
        raise FewstepError(
            f"controlnet {name} not found", "give the folder with its config.json and weights, or a hub id owner/name"
        )
    network = _part(ControlNetModel, folder, model.unet.dtype, model.device)
    for part in ("cross_attention_dim", "block_out_channels", "addition_embed_type"):
        if network.config[part] != model.unet.config[part]:
            raise FewstepError(
                f"controlnet {name} does not fit the model: {part} is {network.config[part]},"
                f" not {model.unet.config[part]}",
                "use a ControlNet made for this model's family",
            )
    return network


def load_clip(name: str, device: torch.device | str) -> tuple[Path, Any, Any, Any]:
    """The folder of a CLIP model, here or of the hub; its CLIPModel, tokenizer and image processor."""
    from transformers import CLIPImageProcessor, CLIPModel  # few ask for them

    folder = resolved(name)
    if not (folder / "config.json").is_file():
        raise FewstepError(
            f"CLIP model {name} not found",
            "give --clip-model the folder with CLIP's configs, vocabulary and .safetensors weights, or a hub id",
        )
    network = _part(CLIPModel, folder, torch.float32, device)
    try:
        processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise FewstepError(f"cannot load the image processor of {folder}", "copy the CLIP folder again") from error
    return folder, network, _tokenizer(folder), processor


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
    refuse_blind(name, schedule.zero_terminal_snr, f"{path} has ")
    return schedule, name


def model_recipe(folder: Path) -> Recipe | None:
    """The recipe of a model that fewstep made whole, or None. Raises FewstepError for a damaged one."""
    path = folder / RECIPE_FILE
    if not path.exists():
        return None
    try:
        return Recipe(**read_json(path, "sampling recipe"))
    except (ValidationError, TypeError) as error:
        raise FewstepError(f"the sampling recipe {path} is damaged", "copy the whole model folder again") from error


def _variant(folder: Path) -> str | None:
    """fp16 where a folder has no other weights: the libraries look for them only when told."""
    names = [file.name for file in folder.glob("*.safetensors")]
    return "fp16" if names and all(".fp16" in name for name in names) else None


def _part(kind: Any, folder: Path, dtype: torch.dtype, device: torch.device | str) -> Any:
    try:
        part, info = kind.from_pretrained(
            folder,
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            variant=_variant(folder),
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


def _safety_checker(path: Path, device: torch.device | str) -> SafetyChecker:
    # Imported here because it is slow, and few models have one.
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPImageProcessor

    network = _part(StableDiffusionSafetyChecker, path / "safety_checker", torch.float32, device)
    try:
        return SafetyChecker(network, CLIPImageProcessor.from_pretrained(path / "feature_extractor"))
    except (OSError, ValueError, TypeError) as error:
        raise FewstepError(
            f"cannot load {path / 'feature_extractor'}, which its safety checker needs",
            "copy the whole model folder again, or give --no-safety-checker",
        ) from error


def _tokenizer(folder: Path) -> Any:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise FewstepError(f"cannot load {folder} (it has no vocabulary)", "copy the tokenizer folder again")
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, json.JSONDecodeError, TypeError) as error:
        raise FewstepError(
            f"cannot load {folder} ({type(error).__name__})", "copy the tokenizer folder again"
        ) from error
