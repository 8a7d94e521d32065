"""A model from a single .safetensors file in the original latent diffusion layout. Every tensor must have a place."""

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
from fewstep.errors import FewstepError, number_of
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
from fewstep.lora.recipe import from_metadata
from fewstep.models.model import Model
from fewstep.models.parts import check_finite, size_in_words
from fewstep.models.quiet import quiet
from fewstep.models.weights import at_origin, family_of_file, opened

CONV_IN = f"{UNET}input_blocks.0.0.weight"


class CheckpointPart(NamedTuple):
    """A network without weights, and the places of its weights in the file."""

    network: Any
    origins: Mapping[str, Origin]  # tensor of the network -> its place in the file


def load_single_file(
    path: Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    unet_dtype: torch.dtype | None = None,
) -> Model:
    """The model in a single file, like `load_model`.

    Raises FewstepError that names a missing, unknown or wrongly shaped tensor.
    """
    file = opened(path)
    keys = frozenset(file.keys())
    family = family_of_file(path)
    parts = {"unet": unet_part(family, file.get_slice(CONV_IN).get_shape()[1]), "vae": vae_part(family)}
    for name, encoder in zip(TEXT, family.text_encoders, strict=False):
        parts[name] = text_part(name, encoder, keys)
    check_accounted(path, keys, parts.values())
    for name, part in parts.items() if str(device) != "meta" else ():
        fill(part, file, path, unet_dtype or dtype if name == "unet" else dtype)
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
        recipe=from_metadata(file.metadata() or {}, str(path)),
        zero_empty=len(tokenizers) == 2,
    )


def unet_part(family: Family, channels: int) -> CheckpointPart:
    """The family's UNet. channels: its input channels, 9 for inpainting."""
    with init_empty_weights():
        unet = UNet2DConditionModel(**family.unet, in_channels=channels)
    return CheckpointPart(unet, unet_origins(unet.state_dict()))


def vae_part(family: Family) -> CheckpointPart:
    """The family's autoencoder."""
    with init_empty_weights():
        vae = AutoencoderKL(**family.vae)
    return CheckpointPart(vae, vae_origins(vae.state_dict()))


def text_part(name: str, encoder: TextEncoder, keys: frozenset[str]) -> CheckpointPart:
    """A text encoder. Its prefix in the file decides between CLIP's names and OpenCLIP's."""
    kind = CLIPTextModelWithProjection if encoder.projection else CLIPTextModel
    with init_empty_weights():
        network = kind(CLIPTextConfig(**encoder.config()))
    prefix = text_prefix(name, keys) or TEXT[name][0]
    tensors = {tensor: text_module(tensor) for tensor in network.state_dict()}
    origins = text_origins(tensors.values(), prefix)
    return CheckpointPart(network, {tensor: origins[spelled] for tensor, spelled in tensors.items()})


def check_accounted(path: Path, keys: frozenset[str], parts: Iterable[CheckpointPart]) -> None:
    """Raise FewstepError unless the file has every tensor of the networks, and none that would be ignored."""
    used = {origin.key for part in parts for origin in part.origins.values()}
    missing = sorted(used - keys)
    if missing:
        raise FewstepError(
            f"{path} lacks {len(missing)} of the model's tensors, such as {missing[0]}",
            "fewstep needs a whole checkpoint, with UNet, autoencoder and text encoders; download it again",
        )
    unknown = sorted(key for key in keys - used if not UNUSED.fullmatch(key))
    if unknown:
        raise FewstepError(
            f"{path} has {number_of(len(unknown), 'tensor')} without a place in the model, such as {unknown[0]}",
            "it is a checkpoint of another kind, or something that is not Stable Diffusion was merged into it",
        )


def fill(part: CheckpointPart, file: Any, path: Path, dtype: torch.dtype) -> None:
    """Load the network's weights into it, one at a time."""
    shapes = {name: tensor.shape for name, tensor in part.network.state_dict().items()}
    weights = {}
    for name, origin in part.origins.items():
        tensor = at_origin(file.get_tensor(origin.key), origin)
        if tensor.numel() != shapes[name].numel():
            raise FewstepError(
                f"{path}: {origin.key} is {size_in_words(tensor.shape)}, not {size_in_words(shapes[name])}",
                "it is a checkpoint of another kind",
            )
        weights[name] = tensor.reshape(shapes[name]).to(dtype).contiguous()  # files may keep a 1 x 1 Conv2d as a Linear
    part.network.load_state_dict(weights, assign=True)


def scheduler_of(path: Path, family: Family) -> dict[str, Any]:
    """The scheduler config of a checkpoint: its noise schedule and prediction type.

    Checkpoints seldom name the prediction type. The first of these that is there counts: the tensors v_pred and ztsnr,
    modelspec.prediction_type in the metadata, `parameterization` in a .yaml file of the same name, the family's type.
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
    """CLIP's tokenizer, which checkpoints do not contain. The embedded model has its own."""
    if family.name == MODEL:
        return CLIPTokenizer.from_pretrained(verified(MODEL) / "tokenizer", local_files_only=True)
    vocabulary, merges = clip_vocabulary()
    return CLIPTokenizer(vocabulary, merges, pad_token=encoder.padding, model_max_length=encoder.length)


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's tokens and merges (arXiv 2103.00020): bytes, bytes that end a word, merged pairs, start and end marks."""
    lines = gzip.decompress(shipped_vocabulary().read_bytes()).decode().splitlines()
    merges = [(first, second) for first, _, second in (line.partition(" ") for line in lines)]
    letters = byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    return {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}, merges


def byte_letters() -> list[str]:
    """The letter for each byte, printable bytes first, in the order of byte-level BPE."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]


@doing("writing the model")
@quiet()
def save_folder(model: Model, folder: Path) -> None:
    """Write a model from a single file as a folder in diffusers' layout, in its present types, whole or not at all."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline  # a slow import that few commands need

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
