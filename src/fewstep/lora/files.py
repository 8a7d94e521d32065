"""LoRA files: safetensors in and out, in the layout of the original LCM-LoRA files."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewstep.assets import shipped_lora
from fewstep.errors import FewstepError
from fewstep.io import atomic_path
from fewstep.lora.low_rank import Adapter, LowRank
from fewstep.lora.recipe import Recipe, from_metadata, to_metadata

PREFIX = "lora_unet_"


class Reference(NamedTuple):
    """A LoRA as typed: FILE or FILE:WEIGHT, where FILE may be the name of a shipped one."""

    path: Path
    weight: float

    @property
    def file(self) -> Path:
        """The file that is meant. Raises FewstepError when there is none."""
        file = shipped_lora(str(self.path)) or self.path
        if not file.is_file():
            raise FewstepError(
                f"LoRA file not found: {self.path}",
                "check the path after --lora",
            )
        return file


def parse_reference(text: str) -> Reference:
    """FILE or FILE:WEIGHT; the weight is what stands after the last colon if it is a number, else 1."""
    name, _, last = text.rpartition(":")
    try:
        weight = float(last)
    except ValueError:
        weight = math.nan
    return Reference(Path(name), weight) if name and math.isfinite(weight) else Reference(Path(text), 1.0)


def flattened(name: str) -> str:
    """A dotted module name as the original layout spells it."""
    return PREFIX + name.replace(".", "_")


def save_adapter(path: Path, adapter: Adapter, recipe: Recipe, dtype: torch.dtype = torch.float16) -> None:
    """Write the adapter whole or not at all: per module lora_down (A), lora_up (B) and alpha = rank.

    This is the layout of the original LCM-LoRA files, which diffusers loads as it is.
    """
    tensors: dict[str, Tensor] = {}
    for name, update in adapter.modules.items():
        key = flattened(name)
        tensors[f"{key}.lora_down.weight"] = update.A.detach().to("cpu", dtype).contiguous()
        tensors[f"{key}.lora_up.weight"] = update.B.detach().to("cpu", dtype).contiguous()
        tensors[f"{key}.alpha"] = torch.tensor(float(update.rank), dtype=dtype)
    rank = max((u.rank for u in adapter.modules.values()), default=0)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, to_metadata(recipe, rank))
        sort_header(temporary)


def sort_header(path: Path) -> None:
    """Order a safetensors header, so that equal content is equal bytes: its writer leaves the metadata unordered."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.dumps(json.loads(file.read(size)), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        file.seek(8)
        file.write(header.encode().ljust(size))


def load_adapter(path: Path, module_names: Iterable[str]) -> tuple[Adapter, Recipe | None]:
    """The adapter in a file of the original LCM-LoRA layout, in float32, and its recipe if it carries one.

    module_names: of the network it is for; flattened names are resolved against them, never split at underscores.
    """
    tensors, metadata = read_tensors(path)
    dotted = {flattened(name): name for name in module_names}
    modules: dict[str, LowRank] = {}
    for key in sorted({key.split(".")[0] for key in tensors}):
        down, up = tensors.pop(f"{key}.lora_down.weight", None), tensors.pop(f"{key}.lora_up.weight", None)
        alpha = tensors.pop(f"{key}.alpha", None)
        if down is None or up is None or not _paired(down, up):
            raise FewstepError(
                f"LoRA {path} has no matching lora_down and lora_up for {key}",
                "fewstep reads the layout of the original LCM-LoRA files (lora_unet_*.lora_down.weight)",
            )
        scale = 1.0 if alpha is None else float(alpha) / down.shape[0]
        modules[dotted.get(key, key)] = LowRank(down.float(), up.float() * scale)
    if tensors or not modules:
        what = f"unused keys, such as {min(tensors)}" if tensors else "no LoRA weights"
        raise FewstepError(f"LoRA {path} has {what}", "fewstep reads the layout of the original LCM-LoRA files")
    if not all(bool(x.isfinite().all()) for u in modules.values() for x in u):
        raise FewstepError(f"LoRA {path} holds values that are not finite", "get the file again from its source")
    return Adapter(modules, metadata), from_metadata(metadata, str(path))


def _paired(down: Tensor, up: Tensor) -> bool:
    return down.ndim in (2, 4) and up.ndim == down.ndim and up.shape[1] == down.shape[0]


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file."""
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise FewstepError(f"LoRA file not found: {path}", "check the path") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise FewstepError(
            f"LoRA {path} is not a readable safetensors file ({error})", "get the file again from its source"
        ) from error
