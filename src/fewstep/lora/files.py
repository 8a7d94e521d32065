"""Reading LoRA files of any layout: safetensors, weights-only pickles and PEFT's folders."""

import json
import math
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.families import ModuleShape
from fewstep.io import read_json, sha256_file
from fewstep.lora.dialects import Spellings, prefix_of, taken_apart
from fewstep.lora.factors import Scale, low_rank_of
from fewstep.lora.known import known_recipe
from fewstep.lora.low_rank import Adapter, Lazy, LowRank
from fewstep.lora.recipe import Recipe, from_metadata

PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
PEFT_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
AGAIN = "get the file again from its source"


class Source(NamedTuple):
    """An opened file: what is in it, one tensor at a time."""

    keys: tuple[str, ...]
    read: Callable[[str], Tensor]
    metadata: Mapping[str, str]
    peft: Mapping[str, Any] | None  # PEFT's config, if the file comes with one


def load_adapter(path: Path, shapes: Mapping[str, ModuleShape]) -> tuple[Adapter, Recipe | None]:
    """The adapter in a file of any layout, read module by module, and its recipe if it carries one or is known.

    shapes: of the modules of the model it is for. A module that is none of them keeps the name the file gives it, so
    that `check_fits` can say so.
    """
    source = open_source(path)
    spelled = taken_apart(source.keys, str(path))
    if not spelled:
        raise FewstepError(f"LoRA {path} has no LoRA weights", "see docs/lora-files.md for what is read")
    spellings = Spellings(shapes)
    modules: dict[str, tuple[str, Mapping[str, str]]] = {}
    for module, keys in spelled.items():
        name = spellings.find(module) or module
        if name in modules:
            raise FewstepError(f"LoRA {path} says the same twice: {module} and {modules[name][0]}", AGAIN)
        modules[name] = (module, keys)

    def make(name: str) -> LowRank:
        spelled, keys = modules[name]
        return read_update(source, spelled, keys, shapes[name].kernel if name in shapes else None, str(path))

    recipe = from_metadata(source.metadata, str(path)) or known_recipe(path, modules)
    return Adapter(Lazy(modules, make), source.metadata), recipe


def read_update(source: Source, spelled: str, keys: Mapping[str, str], kernel: int | None, what: str) -> LowRank:
    """The update of one module of the file, in float32.

    Raises FewstepError for factors that do not fit together or are not finite.
    """
    parts = {part: source.read(key) for part, key in keys.items()}
    if not all(tensor.is_floating_point() for tensor in parts.values()):
        raise FewstepError(f"LoRA {what} holds whole numbers for {spelled}", AGAIN)
    scale = peft_scale(source.peft, spelled) if source.peft else None
    try:
        update = low_rank_of(parts, kernel, scale)
    except (ValueError, RuntimeError, IndexError) as error:
        raise FewstepError(f"LoRA {what}: the factors of {spelled} do not fit ({error})", AGAIN) from error
    if not all(bool(factor.isfinite().all()) for factor in update):
        raise FewstepError(f"LoRA {what} holds values that are not finite ({spelled})", AGAIN)
    return update


def hash_of(path: Path) -> str:
    """SHA-256 of a LoRA file; of PEFT's folder that of its weights."""
    return sha256_file(peft_weights(path) if path.is_dir() else path)


# --- opening ------------------------------------------------------------------------------------------------


def open_source(path: Path) -> Source:
    """The file's tensors, unread. No code in it runs."""
    if path.is_dir():
        return open_peft(path)
    if path.suffix.lower() in PICKLES:
        return open_pickle(path)
    try:
        file: Any = safe_open(path, "pt")
        metadata = file.metadata() or {}
        return Source(tuple(file.keys()), reader(file, path), metadata, peft_of(metadata, path))
    except FileNotFoundError:
        raise FewstepError(f"LoRA file not found: {path}", "check the path") from None
    except (SafetensorError, OSError, ValueError, MemoryError) as error:
        raise FewstepError(f"LoRA {path} is not a readable safetensors file ({error})", AGAIN) from error


def reader(file: Any, path: Path) -> Callable[[str], Tensor]:
    """Reads one tensor of an open safetensors file."""

    def read(key: str) -> Tensor:
        try:
            tensor: Tensor = file.get_tensor(key)
        except (SafetensorError, OSError, ValueError) as error:
            raise FewstepError(f"LoRA {path} cannot be read at {key} ({error})", AGAIN) from error
        return tensor

    return read


def open_pickle(path: Path) -> Source:
    """A torch file, by torch's loader that admits tensors only."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of old pickles, which it then reads or refuses
            value = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FewstepError(f"LoRA file not found: {path}", "check the path") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FewstepError(
            f"LoRA {path} is no file of plain tensors ({reason[:120]})", "use its .safetensors version, if there is one"
        ) from error
    tensors = value.get("state_dict", value) if isinstance(value, dict) else value
    if not isinstance(tensors, dict) or not all(isinstance(x, Tensor) for x in tensors.values()):
        raise FewstepError(
            f"LoRA {path} holds no dictionary of tensors", "use its .safetensors version, if there is one"
        )
    named = {str(key): tensor for key, tensor in tensors.items()}
    return Source(tuple(named), named.__getitem__, {}, None)


# --- PEFT ---------------------------------------------------------------------------------------------------


def open_peft(folder: Path) -> Source:
    """A folder that PEFT's save_pretrained left: adapter_config.json beside the weights."""
    weights = peft_weights(folder)
    config = read_json(folder / "adapter_config.json", "PEFT's config")
    return open_source(weights)._replace(peft=checked_peft(config, str(folder)))


def peft_weights(folder: Path) -> Path:
    """The weights in PEFT's folder. Raises FewstepError when there are none."""
    weights = next((folder / name for name in PEFT_WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise FewstepError(f"LoRA folder {folder} has no adapter_model.safetensors", "give the folder PEFT saved")
    return weights


def peft_of(metadata: Mapping[str, str], path: Path) -> Mapping[str, Any] | None:
    """PEFT's config as diffusers keeps it inside a file: lora_adapter_metadata, `unet.r` and so on."""
    if "lora_adapter_metadata" not in metadata:
        return None
    try:
        config = checked_peft(json.loads(metadata["lora_adapter_metadata"]), str(path))
    except ValueError as error:
        raise FewstepError(f"the adapter metadata inside {path} is damaged ({error})", AGAIN) from error
    return {key.removeprefix("unet."): value for key, value in config.items()}


def checked_peft(config: Any, what: str) -> Mapping[str, Any]:
    """PEFT's config, if it is one of a LoRA and what is read from it has the right types."""
    if not isinstance(config, dict):
        raise FewstepError(f"the PEFT config of {what} is no JSON object", AGAIN)
    if config.get("peft_type", "LORA") != "LORA":
        raise FewstepError(f"{what} holds no LoRA but {config['peft_type']}", "use a LoRA")
    for key, value in config.items():
        numbers = value.values() if key.endswith("alpha_pattern") and isinstance(value, dict) else [value]
        if key.endswith(("lora_alpha", "alpha_pattern")) and not all(
            isinstance(x, int | float | None) for x in numbers
        ):
            raise FewstepError(f"the PEFT config of {what} has {key} {value!r}", AGAIN)
        if key.endswith("alpha_pattern") and not isinstance(value, dict | None):
            raise FewstepError(f"the PEFT config of {what} has {key} {value!r}", AGAIN)
    return config


def peft_scale(config: Mapping[str, Any], spelled: str) -> Scale:
    """alpha / R of a module, or alpha / sqrt(R) with rslora (arXiv 2312.03732), by PEFT's config and its patterns."""
    start = prefix_of(spelled)
    own = {key.removeprefix(start): value for key, value in config.items()} if start.startswith("text") else config
    module = spelled.removeprefix(start)
    alpha = matching(own.get("alpha_pattern") or {}, module, own.get("lora_alpha"))

    def scale(rank: int) -> float:
        if alpha is None:
            return 1.0
        return float(alpha) / (math.sqrt(rank) if own.get("use_rslora") else rank)

    if own.get("use_dora"):
        raise FewstepError(f"{module} is a DoRA, which cannot be added up", "use a plain LoRA")
    return scale


def matching(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that is the module's name or ends it. PEFT takes patterns as regular expressions
    and writes names; names alone are read here."""
    return next((value for key, value in patterns.items() if f".{module}".endswith(f".{key}")), default)
