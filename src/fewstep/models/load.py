"""Loads a model of Stable Diffusion or in pixel space from disk, as parts ready to use. No code from its files runs."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from fewstep.assets import shipped_model
from fewstep.diffusion.prediction import prediction_named, refuse_blind
from fewstep.diffusion.schedule import NoiseSchedule, schedule_from_config
from fewstep.errors import FewstepError, UsageError, option
from fewstep.events import doing
from fewstep.hub import not_found, resolved
from fewstep.io import brief, read_json, read_object
from fewstep.lora.recipe import Recipe, checked_recipe
from fewstep.models.attention import use_attention
from fewstep.models.convolution import use_products
from fewstep.models.exported import refuse_exported
from fewstep.models.fitting import check_control, check_parts
from fewstep.models.model import PARTS, Model
from fewstep.models.part_configs import checked_config
from fewstep.models.parts import (
    COPY,
    checked_part,
    filled,
    load_part,
    load_processor,
    load_tokenizer,
    outlined,
    part_config,
)
from fewstep.models.pixels import clip_of, in_pixels, load_network, part_folder
from fewstep.models.quiet import quiet
from fewstep.models.safety import SafetyChecker
from fewstep.models.single_file import load_single_file

NOT_VP = re.compile(  # schedulers of diffusers whose noise levels alpha and sigma do not have alpha**2 + sigma**2 == 1
    r"(CMStochasticIterative|KarrasVe|ScoreSdeVe|EDM|CosineDPM|FlowMatch)\w*"
)
RECIPE_FILE = "fewstep.json"  # next to model_index.json, in models that fewstep distilled whole
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "arm_bf16")  # CPU instructions, as torch names them
NETWORKS: dict[str, Any] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,  # of SDXL
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str) -> torch.device:
    """The device for `auto`, cpu, cuda or mps. Raises FewstepError when torch does not have it on this machine."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if there[kind]))
    if not there.get(name):
        raise FewstepError(
            f"{option('device')} {name} is not available on this machine",
            f"use {option('device')} auto, or see fewstep doctor",
        )
    return torch.device(name)


def fast_dtype(device: torch.device) -> torch.dtype:
    """The fastest precision that the device computes natively: fp16 on a GPU, bf16 on a CPU that has it, else fp32."""
    if device.type != "cpu":
        return torch.float16
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # only newer versions of torch have it
    return torch.bfloat16 if any(known.get(name) for name in BF16_INSTRUCTIONS) else torch.float32


@doing("loading the model")
@quiet()
def load_model(
    name: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    safety: bool = True,
    unet_dtype: torch.dtype | None = None,
) -> Model:
    """The model `name`: the embedded one, a folder in diffusers' layout, a single .safetensors file, or one of the hub.

    device: meta leaves the networks without weights. safety: False leaves out the safety checker of a folder that has
    one. unet_dtype: of the UNet, if it is not `dtype` too. Raises FewstepError that names the part that is missing or
    unreadable.
    """
    refuse_exported(name)
    path = shipped_model(name) or resolved(name)
    if path.is_file():
        model = load_single_file(path, dtype, device, unet_dtype)
    elif in_pixels(index := _index(path, name)):
        model = _pixel_model(path, index, unet_dtype or dtype, device)
    else:
        model = _latent_model(path, index, dtype, device, safety, unet_dtype or dtype)
    for network in (model.unet, model.vae):
        if network is not None:
            speed_up(network)
    return model


def speed_up(network: Any) -> None:
    """Have a network of diffusers compute by matrix products what they are faster for on a CPU that has bf16."""
    if fast_dtype(torch.device("cpu")) == torch.bfloat16:
        use_attention(network)
        use_products(network)


def _latent_model(
    path: Path,
    index: Mapping[str, Any],
    dtype: torch.dtype,
    device: torch.device | str,
    safety: bool,
    unet_dtype: torch.dtype,
) -> Model:
    """The model of Stable Diffusion in a folder in diffusers' layout."""
    parts = {part: kind for part, kind in NETWORKS.items() if part != "text_encoder_2" or index.get(part, [None])[0]}
    tokenizers = [part.replace("text_encoder", "tokenizer") for part in parts if part.startswith("text_encoder")]
    for part in (*parts, *tokenizers, "scheduler"):
        if not (path / part).is_dir():
            raise FewstepError(f"model folder {path} has no {part} folder", COPY)
    schedule, prediction_type, _ = _schedule(path / "scheduler" / "scheduler_config.json")
    recipe = model_recipe(path)
    for part, kind in parts.items():
        part_config(kind, path / part)  # all are checked before any is built
    read = {part: load_tokenizer(path / part) for part in tokenizers}
    networks = {part: checked_part(kind, path / part) for part, kind in parts.items()}
    check_parts(path, read | networks)
    if str(device) != "meta":
        for part, network in networks.items():
            networks[part] = filled(network, path / part, unet_dtype if part == "unet" else dtype, device)
    return Model(
        path=path,
        **read,
        **networks,
        schedule=schedule,
        prediction_type=prediction_type,
        recipe=recipe or published_lcm(networks["unet"].config),
        zero_empty=bool(index.get("force_zeros_for_empty_prompt", "text_encoder_2" in parts)),
        safety_checker=_safety_checker(path, device) if safety and (path / "safety_checker").is_dir() else None,
    )


def _pixel_model(path: Path, index: Mapping[str, Any], dtype: torch.dtype, device: torch.device | str) -> Model:
    schedule, prediction_type, config = _schedule(part_folder(path, "scheduler") / "scheduler_config.json")
    recipe = model_recipe(path)
    return Model(
        path=path,
        unet=load_network(path, index, dtype, device),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        schedule=schedule,
        prediction_type=prediction_type,
        recipe=recipe,
        clip=clip_of(config),
    )


def takes_text(name: str) -> bool:
    """Whether a model takes text, by the model_index.json of its folder. True for a name that is not a folder here."""
    path = Path(name).expanduser() / "model_index.json"
    return not (path.is_file() and in_pixels(read_object(path, "model index")))


@quiet()
def load_controlnet(name: str, model: Model) -> Any:
    """The ControlNetModel in a folder, with the dtype and device of the model's network, which it must fit."""
    if not model.takes_text:
        raise UsageError(f"{option('controlnet')}: {model.path} is a model in pixel space", "leave it out")
    folder = resolved(name)
    if not (folder / "config.json").is_file():
        raise FewstepError(
            f"controlnet {name} not found", "give the folder with its config.json and weights, or a hub id owner/name"
        )
    network = checked_part(ControlNetModel, folder)
    check_control(name, network.config, model)
    filled(network, folder, model.unet.dtype, model.device)
    speed_up(network)
    return network


@quiet()
def load_clip(name: str, device: torch.device | str) -> tuple[Path, Any, Any, Any]:
    """The folder of a CLIP model, local or from the hub, then its CLIPModel, tokenizer and image processor."""
    from transformers import CLIPModel  # few commands need it

    folder = resolved(name)
    if not (folder / "config.json").is_file():
        raise FewstepError(
            f"CLIP model {name} not found",
            f"give {option('clip_model')} the folder that has CLIP's configs, vocabulary and .safetensors weights, or"
            " a hub id",
        )
    network = load_part(CLIPModel, folder, torch.float32, device)
    processor = load_processor(folder, network.config.vision_config.image_size)
    return folder, network, load_tokenizer(folder), processor


def _index(folder: Path, name: str) -> dict[str, Any]:
    if not folder.exists():
        raise not_found(name)
    path = folder / "model_index.json"
    if not path.is_file():
        raise FewstepError(
            f"{folder} is not a Stable Diffusion model folder: it has no model_index.json",
            "name the folder that holds unet, vae, text_encoder, tokenizer and scheduler",
        )
    index = checked_config(path, "model index")
    for part in (*PARTS, "transformer"):
        value = index.get(part, [None, None])
        if not (isinstance(value, list) and len(value) == 2 and all(isinstance(word, str | None) for word in value)):
            raise FewstepError(f"{path}: {part} is {brief(value)}, not a library and a class", COPY)
        own = NETWORKS[part].__name__ if part in NETWORKS else "" if part in PARTS else None
        own = value[1] if part == "unet" and in_pixels(index) else own
        if value[1] and (own is None or not value[1].startswith(own)):
            raise FewstepError(
                f"{path}: {part} is {value[1]}, a part of {index.get('_class_name', 'another kind of model')}",
                "fewstep reads models of the Stable Diffusion families: SD 1.x, SD 2.x, SDXL, SSD-1B; and DDPM's,"
                " whose network is a UNet2DModel",
            )
    return index


def _schedule(path: Path) -> tuple[NoiseSchedule, str, Mapping[str, Any]]:
    """The schedule and the prediction type of a scheduler's config, and the config itself."""
    config = checked_config(path, "scheduler config")
    if (kind := NOT_VP.match(str(config.get("_class_name", "")))) is not None:
        raise FewstepError(
            f"{path} is of {kind[0]}, whose noise is not variance-preserving (it is Karras', VE or a flow)",
            "fewstep reads the schedules of DDPM: those of diffusers' DDPMScheduler, DDIMScheduler and the like",
        )
    name = config.get("prediction_type", "epsilon")
    try:
        prediction_named(name)
        schedule = schedule_from_config(config)
    except FewstepError as error:
        raise FewstepError(f"{path}: {error.message.marked}", error.hint) from error
    refuse_blind(name, schedule.zero_terminal_snr, f"{path} has ")
    return schedule, name, config


def model_recipe(folder: Path) -> Recipe | None:
    """The recipe of a model that fewstep distilled whole; None for others. Raises FewstepError if it is damaged."""
    path = folder / RECIPE_FILE
    if not path.exists():
        return None
    return checked_recipe(read_json(path, "sampling recipe"), f"the sampling recipe {path}", COPY)


def published_lcm(unet: Mapping[str, Any]) -> Recipe | None:
    """The recipe of a latent consistency model that others published, from its UNet's config; None for other models.

    A UNet that takes guidance as an input is such a model. The values are those of the paper (arXiv 2310.04378,
    section 5: w from 2 to 14, k = 20) and of the card of SimianLuo/LCM_Dreamshaper_v7 (guidance 8, 4 steps).
    """
    if unet.get("time_cond_proj_dim") is None:
        return None
    return Recipe(method="lcd", solver="lcm", steps=4, guidance_scale=8.0, k=20, teacher_guidance_scale=(3.0, 15.0))


def _safety_checker(path: Path, device: torch.device | str) -> SafetyChecker:
    device = "cpu" if str(device) == "meta" else device
    # Imported here because the import is slow, and few models have a safety checker.
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    network = load_part(StableDiffusionSafetyChecker, path / "safety_checker", torch.float32, device)
    try:
        processor = load_processor(path / "feature_extractor", network.config.vision_config.image_size)
    except FewstepError as error:
        raise FewstepError(
            f"the safety checker's {error.message.marked}",
            f"{error.hint.marked}, or give {option('no_safety_checker')}",
        ) from error
    return SafetyChecker(network, processor)


@quiet()
def load_exported(folder: Path) -> Model:
    """The model in an exported folder. Its networks have no weights: they say what the graphs take and give.

    Raises FewstepError that names the part that is missing or damaged.
    """
    index = _index(folder, str(folder))
    parts = {part: kind for part, kind in NETWORKS.items() if part != "text_encoder_2" or index.get(part, [None])[0]}
    folders = {part: folder / ("vae_decoder" if part == "vae" else part) for part in parts}
    for path in (*folders.values(), folder / "tokenizer", folder / "scheduler"):
        if not path.is_dir():
            raise FewstepError(f"exported folder {folder} has no {path.name} folder", COPY)
    networks = {part: outlined(kind, folders[part]) for part, kind in parts.items()}
    read = {
        name: load_tokenizer(folder / name)
        for name in (part.replace("text_encoder", "tokenizer") for part in parts if part.startswith("text_encoder"))
    }
    check_parts(folder, read | networks)
    schedule, prediction_type = _schedule(folder / "scheduler" / "scheduler_config.json")[:2]
    return Model(
        path=folder,
        **read,
        **networks,
        schedule=schedule,
        prediction_type=prediction_type,
        recipe=model_recipe(folder) or published_lcm(networks["unet"].config),
        zero_empty=bool(index.get("force_zeros_for_empty_prompt", "text_encoder_2" in parts)),
    )
