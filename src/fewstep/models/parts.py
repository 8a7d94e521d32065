"""The parts of a model folder. The config, files and shapes of each are checked before it is built."""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer

from fewstep.errors import FewstepError, number_of, option
from fewstep.io import read_object
from fewstep.models.part_configs import AGAIN, checked_config, layers_of_config
from fewstep.models.weights import lost_values, opened

NOT_FINITE = f"get the model again; if you use {option('dtype')} fp16, try bf16 or fp32, which hold larger values"
COPY = "copy the whole model folder again"
MOST_LAYERS = 10_000  # of a network whose weights are not there to be counted
STEMS = ("diffusion_pytorch_model", "model")  # names of weight files in diffusers and transformers
UNUSED = re.compile(  # tensors in files of text encoders that no network here runs
    r"(.*\.)?position_ids|logit_scale|(text|visual)_projection\.weight|vision_model\..*|text_model\..*"
)
SPELLINGS = (  # names in old files and in versions of the libraries -> one name
    (re.compile(r"^(text_model\.)+"), ""),
    (re.compile(r"^(vision_model\.)+"), "vision_model."),
    (re.compile(r"(\.attentions\.\d+)\.query\."), r"\1.to_q."),
    (re.compile(r"(\.attentions\.\d+)\.key\."), r"\1.to_k."),
    (re.compile(r"(\.attentions\.\d+)\.value\."), r"\1.to_v."),
    (re.compile(r"(\.attentions\.\d+)\.proj_attn\."), r"\1.to_out.0."),
)


def load_part(kind: Any, folder: Path, dtype: torch.dtype, device: torch.device | str) -> Any:
    """The network in a folder with config.json and weights. It is checked, then loaded."""
    return filled(checked_part(kind, folder), folder, dtype, device)


def part_config(kind: Any, folder: Path) -> dict[str, Any]:
    """The config of a folder's network, checked: it is of this kind and has no more layers than its weights can fill.

    kind: the network's class, of diffusers or transformers. Raises FewstepError that names the file and the fault.
    """
    path = folder / "config.json"
    config = checked_config(path, "config")
    _check_kind(path, config, kind)
    asked, stored = layers_of_config(config), len(stored_sizes(folder))
    if 4 * asked > stored:
        raise FewstepError(f"{path} asks for at least {asked} layers, but its weights are only {stored} tensors", AGAIN)
    return config


def checked_part(kind: Any, folder: Path) -> Any:
    """The network in a folder, without its weights. The sizes in the weight files fit config.json.

    Only configs and the headers of weight files are read. Raises FewstepError that names the value that does not fit.
    """
    network = _empty(kind, folder, part_config(kind, folder))
    _check_sizes(folder / "config.json", network, stored_sizes(folder))
    return network


def outlined(kind: Any, folder: Path) -> Any:
    """The network that a folder's config.json describes, without weights, for a folder that has none."""
    path = folder / "config.json"
    config = checked_config(path, "config")
    _check_kind(path, config, kind)
    if layers_of_config(config) > MOST_LAYERS:
        raise FewstepError(f"{path} asks for more than {MOST_LAYERS} layers", AGAIN)
    return _empty(kind, folder, config).eval().requires_grad_(False)


def filled(network: Any, folder: Path, dtype: torch.dtype, device: torch.device | str) -> Any:
    """The network that `checked_part` built from a folder, with the folder's weights, in evaluation mode.

    On a CPU, weights that already have the type `dtype` stay mapped from their file. Raises FewstepError for weights
    that are missing, belong to no module, or are not finite.
    """
    path = folder / "config.json"
    names = {_spelled(name): name for name in network.state_dict()}
    weights, unknown = {}, []
    for weight_file in weight_files(folder):
        file = opened(weight_file)
        for key in file.keys():  # noqa: SIM118
            if (name := names.get(_spelled(key))) is not None:
                weights[name] = _floating(file.get_tensor(key), key, weight_file).to(device, dtype)
            elif not UNUSED.fullmatch(key):
                unknown.append(key)
    if missing := names.values() - weights.keys():
        raise FewstepError(f"{path} asks for {min(missing)}, which its weights lack", COPY)
    if unknown:
        raise FewstepError(
            f"{path} has no place for {number_of(len(unknown), 'tensor')} of its weights, such as {min(unknown)}",
            "it belongs to another model, or something that is not Stable Diffusion was merged into the weights",
        )
    network.load_state_dict(weights, assign=True)
    _count_positions(network)
    network = network.to(device).eval().requires_grad_(False)
    check_finite(network, folder)
    return network


def _floating(tensor: Tensor, key: str, file: Path) -> Tensor:
    """The tensor itself. Raises FewstepError for a tensor of whole numbers, which means quantised weights."""
    if not tensor.is_floating_point():
        raise FewstepError(f"{file} holds whole numbers in {key}", "fewstep reads weights that are not quantised")
    return tensor


def _count_positions(network: Any) -> None:
    """Fill CLIP's table of positions with 0, 1, ... It is the only table that no file of weights holds."""
    for module in network.modules():
        if getattr(module, "position_ids", None) is not None:
            module.position_ids = torch.arange(module.position_ids.shape[-1]).expand(1, -1)


def load_tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer in a folder. Raises FewstepError that names a damaged file."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise FewstepError(f"cannot load {folder} (it has no vocabulary)", "copy the tokenizer folder again")
    for path in sorted(folder.glob("[!.]*.json")):
        read_object(path, "tokenizer file")
    if (folder / "tokenizer_config.json").is_file():
        checked_config(folder / "tokenizer_config.json", "tokenizer config")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        tokenizer(["a"], padding="max_length", max_length=2, truncation=True)
    except Exception as error:  # the library reads here and may raise anything
        raise FewstepError(f"cannot load {folder} ({reason(error)})", "copy the tokenizer folder again") from error
    return tokenizer


def load_processor(folder: Path, size: int) -> Any:
    """CLIP's image processor in a folder. Its pictures have `size` pixels a side, as its network expects."""
    from transformers import CLIPImageProcessor  # few commands need it, and the import is slow

    path = folder / "preprocessor_config.json"
    checked_config(path, "image processor config")
    try:
        processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
        made = processor(Image.new("RGB", (size, size)), return_tensors="pt").pixel_values
    except Exception as error:  # the library reads here and may raise anything
        message = f"{path}: no image processor can be built from it ({reason(error)})"
        raise FewstepError(message, AGAIN) from error
    if made.shape != (1, 3, size, size) or not made.isfinite().all():
        raise FewstepError(
            f"{path} turns a picture into {size_in_words(made.shape)}, but its network takes {size} pixels", AGAIN
        )
    return processor


def reason(error: BaseException) -> str:
    """The message of a library's error, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."


def variant(folder: Path) -> str | None:
    """fp16 when a folder has only weights of this variant, else None. The libraries need to be given its name."""
    names = [file.name for file in folder.glob("*.safetensors")]
    return "fp16" if names and all(".fp16" in name for name in names) else None


def stored_sizes(folder: Path) -> dict[str, list[int]]:
    """Tensor -> its size, from the headers of a folder's weight files. Raises FewstepError for an unreadable file."""
    sizes: dict[str, list[int]] = {}
    for path in weight_files(folder):
        file = opened(path)
        sizes |= {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    return sizes


def weight_files(folder: Path) -> list[Path]:
    """The .safetensors files that the libraries read in a folder: one file, or the shards that an index lists."""
    middle = f".{name}" if (name := variant(folder)) else ""
    for stem in STEMS:
        index = folder / f"{stem}.safetensors.index{middle}.json"
        if index.is_file():
            return [folder / name for name in _shards(index)]
        if (folder / f"{stem}{middle}.safetensors").is_file():
            return [folder / f"{stem}{middle}.safetensors"]
    raise FewstepError(
        f"cannot load {folder} (it has no {STEMS[0]}.safetensors or {STEMS[1]}.safetensors)",
        "fewstep loads diffusers folders with .safetensors weights; copy it again",
    )


def _shards(index: Path) -> list[str]:
    listed = read_object(index, "list of shards").get("weight_map")
    names = sorted({str(name) for name in listed.values()}) if isinstance(listed, dict) else []
    lost = next((name for name in names if "/" in name or not (index.parent / name).is_file()), None)
    if not names or lost:
        raise FewstepError(f"{index} lists {lost or 'no shards'}" + (", which is missing" if lost else ""), COPY)
    return names


def _check_kind(path: Path, config: Mapping[str, Any], kind: Any) -> None:
    """Raise FewstepError for the config of another kind of network."""
    library = getattr(kind, "config_class", None)  # classes of transformers have it
    key = "model_type" if library else "_class_name"
    expected = library.model_type if library else kind.__name__
    if config.get(key, expected) not in (expected, "clip" if library else expected):
        raise FewstepError(
            f"{path}: {key} is {config[key]}, not {expected}",
            "it is another kind of network: name the folder of one that fits here",
        )


def _empty(kind: Any, folder: Path, config: Mapping[str, Any]) -> Any:
    """The network that a config describes, without memory for its weights."""
    try:
        with torch.device("meta"):
            if hasattr(kind, "from_config") and not hasattr(kind, "config_class"):
                return kind.from_config(dict(config))
            return kind(kind.config_class.from_pretrained(folder, local_files_only=True))
    except Exception as error:  # the libraries check little and may raise anything
        message = f"{folder / 'config.json'}: no {kind.__name__} can be built from it ({reason(error)})"
        raise FewstepError(message, AGAIN) from error


def _check_sizes(path: Path, network: Any, sizes: Mapping[str, list[int]]) -> None:
    """Raise FewstepError for a tensor whose size differs from the config's."""
    asked = {_spelled(name): list(tensor.shape) for name, tensor in network.state_dict().items()}
    for key, size in sizes.items():
        expected = asked.get(_spelled(key), size)
        if expected != size:
            raise FewstepError(
                f"{path} does not fit its weights: {key} is {size_in_words(size)}, not {size_in_words(expected)}",
                "one of the two belongs to another model: copy the whole model folder again",
            )


@cache
def _spelled(key: str) -> str:
    for pattern, spelling in SPELLINGS:
        key = pattern.sub(spelling, key)
    return key


def size_in_words(size: Iterable[int]) -> str:
    """A tensor's size in words: 320 x 4 x 3 x 3."""
    return " x ".join(map(str, size)) or "a single number"


def check_finite(network: Any, path: Path) -> None:
    """Raise FewstepError that names a tensor of the network with NaN or infinity. path: where it was read from."""
    for name, lost in lost_values(network.state_dict()).items():
        raise FewstepError(f"{path} holds values that are not finite: {lost} in {name}", NOT_FINITE)
