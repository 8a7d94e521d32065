"""A single .safetensors file in the original latent diffusion layout as a model: every tensor accounted for."""

import gzip
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from fewstep.assets import MODEL, shipped_vocabulary, verified
from fewstep.diffusion.prediction import refuse_blind
from fewstep.diffusion.schedule import schedule_from_config
from fewstep.errors import FewstepError
from fewstep.events import doing
from fewstep.families import SCHEDULER, Family, TextEncoder
from fewstep.families.single_file import (
    TEXT,
    UNET,
    UNUSED,
    Origin,
    text_origins,
    text_prefix,
    unet_origins,
    vae_origins,
)
from fewstep.io import atomic_folder
from fewstep.lora.dialects import text_module
from fewstep.models.model import Model
from fewstep.models.parts import check_finite, size_in_words
from fewstep.models.weights import at_origin, family_of_file, opened

CONV_IN = f"{UNET}input_blocks.0.0.weight"


class CheckpointPart(NamedTuple):
    """A network without weights, and where they lie."""

    network: Any
    origins: Mapping[str, Origin]  # tensor of the network -> its place in the file


def load_single_file(path: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Model:
    """The model in a single file. Raises FewstepError naming a tensor that is missing, misshapen or unknown."""
    file = opened(path)
    keys = frozenset(file.keys())
    family = family_of_file(path)
    parts = {"unet": unet_part(family, file.get_slice(CONV_IN).get_shape()[1]), "vae": vae_part(family)}
    for name, encoder in zip(TEXT, family.text_encoders, strict=False):
        parts[name] = text_part(name, encoder, keys)
    check_accounted(path, keys, parts.values())
    for part in parts.values():
        fill(part, file, path, dtype)
        check_finite(part.network, path)
    networks = {name: part.network.to(device).eval().requires_grad_(False) for name, part in parts.items()}
    tokenizers = [new_tokenizer(family, encoder) for encoder in family.text_encoders]
    scheduler = scheduler_of(path, family)
    return Model(
        path=path,
        **networks,
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1] if len(tokenizers) == 2 else None,
        schedule=schedule_from_config(scheduler),
        prediction_type=scheduler["prediction_type"],
        zero_empty=len(tokenizers) == 2,
    )


def unet_part(family: Family, channels: int) -> CheckpointPart:
    """The family's UNet; channels: it takes in, 9 for inpainting."""
    with init_empty_weights():
        unet = UNet2DConditionModel(**family.unet, in_channels=channels)
    return CheckpointPart(unet, unet_origins(unet.state_dict()))


def vae_part(family: Family) -> CheckpointPart:
    """The family's autoencoder."""
    with init_empty_weights():
        vae = AutoencoderKL(**family.vae)
    return CheckpointPart(vae, vae_origins(vae.state_dict()))


def text_part(name: str, encoder: TextEncoder, keys: frozenset[str]) -> CheckpointPart:
    """A text encoder; what it is called in the file decides between CLIP's names and OpenCLIP's."""
    kind = CLIPTextModelWithProjection if encoder.projection else CLIPTextModel
    with init_empty_weights():
        network = kind(CLIPTextConfig(**encoder.config()))
    prefix = text_prefix(name, keys) or TEXT[name][0]
    tensors = {tensor: text_module(tensor) for tensor in network.state_dict()}
    origins = text_origins(tensors.values(), prefix)
    return CheckpointPart(network, {tensor: origins[spelled] for tensor, spelled in tensors.items()})


def check_accounted(path: Path, keys: frozenset[str], parts: Iterable[CheckpointPart]) -> None:
    """Raise FewstepError unless the file has every tensor of the networks, and nothing that would be dropped."""
    used = {origin.key for part in parts for origin in part.origins.values()}
    missing = sorted(used - keys)
    if missing:
        raise FewstepError(
            f"{path} lacks {len(missing)} of the model's tensors, such as {missing[0]}",
            "a whole checkpoint is needed: UNet, autoencoder and text encoders; download it again",
        )
    unknown = sorted(key for key in keys - used if not UNUSED.fullmatch(key))
    if unknown:
        raise FewstepError(
            f"{path} has {len(unknown)} tensors that have no place in the model, such as {unknown[0]}",
            "it is a checkpoint of another kind, or something was merged into it that is not Stable Diffusion",
        )


def fill(part: CheckpointPart, file: Any, path: Path, dtype: torch.dtype) -> None:
    """Give the network its weights, one at a time."""
    shapes = {name: tensor.shape for name, tensor in part.network.state_dict().items()}
    weights = {}
    for name, origin in part.origins.items():
        tensor = at_origin(file.get_tensor(origin.key), origin)
        if tensor.numel() != shapes[name].numel():
            raise FewstepError(
                f"{path}: {origin.key} is {size_in_words(tensor.shape)} and not {size_in_words(shapes[name])}",
                "it is a checkpoint of another kind",
            )
        weights[name] = tensor.reshape(shapes[name]).to(dtype).contiguous()  # 1 x 1 convolutions may be linear
    part.network.load_state_dict(weights, assign=True)


def scheduler_of(path: Path, family: Family) -> dict[str, Any]:
    """Config of the noise schedule and what the network predicts.

    A checkpoint seldom says so; what counts, in this order: the marks v_pred and ztsnr among its tensors, its
    metadata's modelspec.prediction_type, `parameterization` in a .yaml file of its name, the family's own.
    """
    file = opened(path)
    keys, metadata = set(file.keys()), file.metadata() or {}
    named_prediction = metadata.get("modelspec.prediction_type", "")
    yaml_file = path.with_suffix(".yaml")
    yaml = yaml_file.read_text(encoding="utf-8", errors="replace") if yaml_file.is_file() else ""
    found = re.search(r"parameterization:\s*[\"']?(\w+)", yaml)
    if "v_pred" in keys or named_prediction == "v" or (found and found[1] == "v"):
        name = "v_prediction"
    elif named_prediction in ("epsilon", "v_prediction"):
        name = named_prediction
    else:
        name = "epsilon" if yaml else family.prediction_type
    refuse_blind(name, "ztsnr" in keys, f"{path} has ")
    return SCHEDULER | {"prediction_type": name, "rescale_betas_zero_snr": "ztsnr" in keys}


def new_tokenizer(family: Family, encoder: TextEncoder) -> Any:
    """CLIP's tokenizer, which checkpoints do without; the embedded model has its own."""
    if family.name == MODEL:
        return CLIPTokenizer.from_pretrained(verified(MODEL) / "tokenizer", local_files_only=True)
    vocabulary, merges = clip_vocabulary()
    return CLIPTokenizer(vocabulary, merges, pad_token=encoder.padding, model_max_length=encoder.length)


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's tokens and merges (arXiv 2103.00020): bytes, bytes at a word's end, merged pairs, start and end."""
    lines = gzip.decompress(shipped_vocabulary().read_bytes()).decode().splitlines()
    merges = [(first, second) for first, _, second in (line.partition(" ") for line in lines)]
    letters = byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    return {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}, merges


def byte_letters() -> list[str]:
    """The letter that stands for each byte, printable ones first, as byte-level BPE orders them."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]


@doing("writing the model")
def save_folder(model: Model, folder: Path) -> None:
    """Write a model of a single file as a folder in diffusers' layout, whole or not at all, in its present types."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline  # slow, and few come here

    scheduler = DDIMScheduler(**scheduler_of(model.path, family_of_file(model.path)))
    parts = {"unet": model.unet, "vae": model.vae, "text_encoder": model.text_encoder, "tokenizer": model.tokenizer}
    if model.text_encoder_2 is None:
        pipe: Any = StableDiffusionPipeline(
            **parts, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    else:
        second = {"text_encoder_2": model.text_encoder_2, "tokenizer_2": model.tokenizer_2}
        pipe = StableDiffusionXLPipeline(
            **parts, **second, scheduler=scheduler, force_zeros_for_empty_prompt=model.zero_empty
        )
    with atomic_folder(folder) as temporary:
        pipe.save_pretrained(temporary)
