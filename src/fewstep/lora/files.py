"""Reading LoRA files of any layout: safetensors, weights-only pickles and PEFT's folders."""

import json
import math
import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.events import doing, note
from fewstep.families import ModuleShape
from fewstep.io import read_json, sha256_file
from fewstep.lora.dialects import PEFT_CONFIG, PEFT_WEIGHTS, Spellings, prefix_of, taken_apart
from fewstep.lora.dora import baked, magnitude_of
from fewstep.lora.factors import Scale, low_rank_of, shaped
from fewstep.lora.known import known_recipe
from fewstep.lora.layouts import layout_of
from fewstep.lora.low_rank import Adapter, Lazy, LowRank, widest
from fewstep.lora.numbered import ANY, EMBEDDING, NUMBERED, numbered_names
from fewstep.lora.recipe import VERSION, Recipe, from_metadata, is_newer

PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
AGAIN = "get the file again from its source"
SAFE = "use its .safetensors version, if there is one"

Base = Callable[[str], Tensor]  # dotted module name -> its weight in the model


class Source(NamedTuple):
    """An opened file: what is in it, one tensor at a time."""

    keys: tuple[str, ...]
    read: Callable[[str], Tensor]
    metadata: Mapping[str, str]
    peft: Mapping[str, Any] | None  # PEFT's config, if the file comes with one


@doing("reading the LoRA")
def load_adapter(
    path: Path, shapes: Mapping[str, ModuleShape], base: Base | None = None
) -> tuple[Adapter, Recipe | None]:
    """The adapter in a file of any layout, for a model, and its recipe, as `LoraFile` has them."""
    file = open_lora(path)
    return file.adapter(shapes, base), file.recipe


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file, opened: what it says of itself, and the adapter it is for each model."""

    path: Path
    source: Source
    spelled: Mapping[str, Mapping[str, str]]  # module as the file spells it -> part -> key
    numbered: Mapping[str, ModuleShape]  # those that have numbers for names
    recipe: Recipe | None  # that it carries, or is known for

    @property
    def layout(self) -> str:
        """What people call it."""
        return layout_of(self.spelled)

    @property
    def dora(self) -> str | None:
        """A key that makes it a DoRA, which is an update of one model's weights alone; None for other files."""
        found = (keys[part] for keys in self.spelled.values() if (part := magnitude_of(keys)) is not None)
        return next(found, None)

    @property
    def dtype(self) -> torch.dtype:
        """The widest type of its factors."""
        keys = (key for parts in self.spelled.values() for part, key in parts.items() if part != "alpha")
        return widest(self.source.read(key).dtype for key in keys)

    def adapter(self, shapes: Mapping[str, ModuleShape], base: Base | None = None) -> Adapter:
        """The updates of one model's modules, read one at a time, in float32.

        shapes: of the model's modules. A module that is none of them keeps the name the file gives it, so that
        `check_fits` can say so. base: the model's weights, which a DoRA needs; None = not known.
        """
        if self.dora is not None and base is None:
            raise FewstepError(
                f"LoRA {self.path} cannot be used: it is a DoRA, which rescales the whole weights of the model it was"
                f" made for and is no update without them ({self.dora})",
                "name that model: fewstep merge FILE --into MODEL, or --model MODEL --rank 64",
            )
        return self._placed(shapes, base)

    def factors(self, shapes: Mapping[str, ModuleShape]) -> Adapter:
        """The same without what makes it a DoRA: B A, whose sizes need no model, of any file."""
        return self._placed(shapes, None)

    def _placed(self, shapes: Mapping[str, ModuleShape], base: Base | None) -> Adapter:
        """The updates under the names that the model has for their modules."""
        spellings, numbers = Spellings(shapes), numbered_names(self.numbered, self.source.metadata, shapes)
        modules: dict[str, str] = {}
        for spelled in self.spelled:
            name = numbers.get(spelled) or spellings.find(spelled) or spelled
            if name in modules:
                raise FewstepError(f"LoRA {self.path} says the same twice: {spelled} and {modules[name]}", AGAIN)
            modules[name] = spelled

        def make(name: str) -> LowRank:
            if name not in shapes:
                return self.update(modules[name], None)
            rescaled = base is not None and magnitude_of(self.spelled[modules[name]]) is not None
            return self.update(modules[name], shapes[name].kernel, base(name) if base and rescaled else None)

        count = len(self.numbered)
        told = {"unplaced": f"is one of {count} numbered modules, which fit in no order or in several"} if count else {}
        return Adapter(Lazy(modules, make), self.source.metadata, **told)

    def update(self, spelled: str, kernel: int | None, W0: Tensor | None = None) -> LowRank:
        """The update of one module as the file spells it. kernel: see `low_rank_of`. W0: the model's weight, for DoRA.

        Raises FewstepError for factors that do not fit together or are not finite.
        """
        parts = {part: self.source.read(key) for part, key in self.spelled[spelled].items()}
        if not all(tensor.is_floating_point() for tensor in parts.values()):
            raise FewstepError(f"LoRA {self.path} holds whole numbers for {spelled}", AGAIN)
        norms = magnitude_of(parts)
        factors = {part: tensor for part, tensor in parts.items() if part != norms}
        scale = peft_scale(self.source.peft, spelled, norms is not None) if self.source.peft else None
        try:
            update = low_rank_of(factors, kernel, scale)
            if norms is not None and W0 is not None:
                update = shaped(baked(update, parts[norms], norms, W0), kernel)
        except (ValueError, RuntimeError, IndexError) as error:
            raise FewstepError(f"LoRA {self.path}: the factors of {spelled} do not fit ({error})", AGAIN) from error
        if not all(bool(factor.isfinite().all()) for factor in update):
            raise FewstepError(f"LoRA {self.path} holds values that are not finite ({spelled})", AGAIN)
        return update


def hash_of(path: Path) -> str:
    """SHA-256 of a LoRA file; of PEFT's folder that of its weights."""
    return sha256_file(peft_weights(path) if path.is_dir() else path)


# --- opening ------------------------------------------------------------------------------------------------


def open_lora(path: Path) -> LoraFile:
    """The LoRA in a file, unread. What it holds and cannot be used is noted on stderr."""
    source = open_source(path)
    words = [key for key in source.keys if source.metadata.get(key) == EMBEDDING]
    spelled = taken_apart((key for key in source.keys if key not in words), str(path))
    if not spelled:
        raise FewstepError(f"LoRA {path} has no LoRA weights", "see docs/lora-files.md for what is read")
    if words:
        note(f"{path} also holds embeddings of {', '.join(words)}, which are left out")
    recipe = from_metadata(source.metadata, str(path)) or known_recipe(path, spelled)
    if is_newer(source.metadata):
        written = source.metadata[VERSION]
        note(f"{path} was written by fewstep {written}, newer than this one; what it adds is ignored")
    file = LoraFile(path, source, spelled, {}, recipe)
    sizes = {module: file.update(module, None).shape for module in spelled if NUMBERED.fullmatch(module)}
    return replace(file, numbered=sizes)


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
        raise FewstepError(f"LoRA {path} is no file of plain tensors ({reason[:120]})", SAFE) from error
    tensors = value.get("state_dict", value) if isinstance(value, dict) else value
    if isinstance(tensors, list) and len(tensors) % 2 == 0:  # cloneofsimo's: up, down, up, down, ...
        tensors = {f"{ANY}:{i // 2}:{'down' if i % 2 else 'up'}": tensor for i, tensor in enumerate(tensors)}
    if not isinstance(tensors, dict) or not all(isinstance(x, Tensor) for x in tensors.values()):
        raise FewstepError(f"LoRA {path} holds no dictionary of tensors, and no pairs of them", SAFE)
    named = {str(key): tensor for key, tensor in tensors.items()}
    return Source(tuple(named), named.__getitem__, {}, None)


# --- PEFT ---------------------------------------------------------------------------------------------------


def open_peft(folder: Path) -> Source:
    """A folder that PEFT's save_pretrained left: adapter_config.json beside the weights."""
    weights = peft_weights(folder)
    config = read_json(folder / PEFT_CONFIG, "PEFT's config")
    return open_source(weights)._replace(peft=checked_peft(config, str(folder)))


def peft_weights(folder: Path) -> Path:
    """The weights in PEFT's folder. Raises FewstepError when there are none."""
    weights = next((folder / name for name in PEFT_WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise FewstepError(f"LoRA folder {folder} has no {PEFT_WEIGHTS[0]}", "give the folder PEFT saved")
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
        if key.endswith("lora_alpha") and not isinstance(value, int | float | None):
            raise FewstepError(f"the PEFT config of {what} has {key} {value!r}, which is no number", AGAIN)
        if key.endswith("alpha_pattern") and not isinstance(value, dict | None):
            raise FewstepError(f"the PEFT config of {what} has {key} {value!r}, which is no JSON object", AGAIN)
        for module, alpha in (value or {}).items() if key.endswith("alpha_pattern") else ():
            if not isinstance(alpha, int | float | None):
                raise FewstepError(f"the PEFT config of {what} has {key} {alpha!r} for {module}, no number", AGAIN)
    return config


def peft_scale(config: Mapping[str, Any], spelled: str, dora: bool) -> Scale:
    """alpha / R of a module, or alpha / sqrt(R) with rslora (arXiv 2312.03732), by PEFT's config and its patterns.

    dora: whether the file holds the module's magnitudes. Raises FewstepError when the config says so alone.
    """
    start = prefix_of(spelled)
    own = {key.removeprefix(start): value for key, value in config.items()} if start.startswith("text") else config
    module = spelled.removeprefix(start)
    alpha = matching(own.get("alpha_pattern") or {}, module, own.get("lora_alpha"))

    def scale(rank: int) -> float:
        if alpha is None:
            return 1.0
        return float(alpha) / (math.sqrt(rank) if own.get("use_rslora") else rank)

    if own.get("use_dora") and not dora:
        raise FewstepError(f"{module} is a DoRA by its config, and its magnitudes are missing", AGAIN)
    return scale


def matching(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that is the module's name or ends it. PEFT takes patterns as regular expressions
    and writes names; names alone are read here."""
    return next((value for key, value in patterns.items() if f".{module}".endswith(f".{key}")), default)
