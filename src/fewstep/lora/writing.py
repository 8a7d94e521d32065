"""Writes LoRA files, one module at a time. The same content always gives the same bytes."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.errors import FewstepError, option
from fewstep.families import FAMILIES, Family
from fewstep.families.ldm import ldm_names
from fewstep.io import atomic_folder, atomic_path, write_json
from fewstep.lora.dialects import PEFT_CONFIG, PEFT_WEIGHTS, TEXT, flat
from fewstep.lora.low_rank import Adapter, LowRank, size_of
from fewstep.lora.recipe import Recipe, to_metadata

SAFETENSORS_NAMES = {
    torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64", torch.bool: "BOOL",
    torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
ALIGNMENT = 8  # bytes; safetensors pads its header so that the data begins at a multiple of this


class Entry(NamedTuple):
    """A tensor to be written. It is made just before it is written."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]


def save_adapter(
    path: Path,
    adapter: Adapter,
    recipe: Recipe,
    dtype: torch.dtype = torch.float16,
    dialect: str = "kohya",
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write the adapter in a dialect, whole or not at all. alpha is the rank, because B includes the scale.

    kohya: what sd-scripts writes for the recipe's family. ComfyUI, AUTOMATIC1111, InvokeAI and diffusers read it.
    diffusers: PEFT's spelling in one file. peft: a folder as PEFT saves it.
    notes: more metadata.
    """
    plan = Planned(adapter, dtype)
    metadata = to_metadata(recipe, max(plan.ranks.values(), default=0)) | dict(notes or {})
    if dialect == "peft":
        save_peft(path, plan, metadata)
        return
    entries = kohya_entries(plan, recipe.family) if dialect == "kohya" else diffusers_entries(plan)
    with atomic_path(path) as temporary:
        write_safetensors(temporary, entries, metadata)


class Planned:
    """An adapter to be written. Shapes of its factors are known; values are read just before they are written."""

    def __init__(self, adapter: Adapter, dtype: torch.dtype) -> None:
        self.modules, self.dtype = adapter.modules, dtype
        self.shapes = {name: size_of(self.modules, name).factors for name in self.modules}
        self.ranks = {name: A[0] for name, (A, _) in self.shapes.items()}
        self._last: tuple[str, LowRank] | None = None

    def update(self, name: str) -> LowRank:
        """The update of one module. It is read once, because its factors are written one after the other."""
        if self._last is None or self._last[0] != name:
            self._last = name, self.modules[name]
        return self._last[1]

    def factors(self, name: str, down: str, up: str) -> list[Entry]:
        """A and B of one module under these keys."""
        A, B = self.shapes[name]
        return [
            Entry(down, A, self.dtype, lambda: self.update(name).A.reshape(A)),
            Entry(up, B, self.dtype, lambda: self.update(name).B.reshape(B)),
        ]

    def alpha(self, name: str, key: str) -> Entry:
        """The alpha of one module, which is its rank, under this key."""
        return Entry(key, (), self.dtype, lambda: torch.tensor(float(self.ranks[name])))


def kohya_entries(plan: Planned, family: str) -> list[Entry]:
    """Every module's lora_down, lora_up and alpha, under its kohya name."""
    entries = []
    for name, key in kohya_names(plan.shapes, family).items():
        entries += plan.factors(name, f"{key}.lora_down.weight", f"{key}.lora_up.weight")
        entries.append(plan.alpha(name, f"{key}.alpha"))
    return entries


def kohya_names(names: Iterable[str], family: str = "custom") -> dict[str, str]:
    """Module -> its name in sd-scripts, which depends on the family.

    SDXL and SSD-1B have lora_te1_ and lora_te2_, and the original code's names in the UNet. The other families have
    lora_te_ and diffusers' names, like the original LCM-LoRA files. An unknown family is named like SDXL if it has a
    second encoder.
    """
    names, known = tuple(names), FAMILIES.get(family)
    two = len(known.text_encoders) > 1 if known else any(name.startswith(TEXT[1]) for name in names)
    original = ldm_names(unet_of(known)) if known and known.naming and known.naming.original else {}
    first = "lora_te1_" if two else "lora_te_"

    def spelled(name: str) -> str:
        for text, prefix in zip(TEXT, (first, "lora_te2_"), strict=True):
            if name.startswith(text):
                return prefix + flat(name.removeprefix(text))
        return f"lora_unet_{flat(original.get(name, name))}"

    return {name: spelled(name) for name in names}


def unet_of(family: Family) -> list[str]:
    """The UNet's modules that LoRAs may adapt."""
    return [name for name in family.all_modules() if not name.startswith(TEXT)]


def diffusers_entries(plan: Planned) -> list[Entry]:
    """Every module's lora_A and lora_B, with PEFT's names, under unet. and text_encoder."""
    keys = {name: name if name.startswith(TEXT) else f"unet.{name}" for name in plan.shapes}
    return peft_entries(plan, keys)


def peft_entries(plan: Planned, keys: Mapping[str, str]) -> list[Entry]:
    """Every module's lora_A and lora_B under its key."""
    return [e for name, key in keys.items() for e in plan.factors(name, f"{key}.lora_A.weight", f"{key}.lora_B.weight")]


def save_peft(path: Path, plan: Planned, metadata: Mapping[str, str]) -> None:
    """Write PEFT's folder, for the UNet alone. PEFT has one folder for each network."""
    text = next((name for name in plan.shapes if name.startswith(TEXT)), None)
    if text is not None:
        raise FewstepError(
            f"a PEFT folder is for one network, but {text} is in another", f"use {option('dialect')} diffusers"
        )
    if path.exists() and not (path / PEFT_CONFIG).is_file():
        raise FewstepError(f"{path} already exists and is not a PEFT folder", f"choose another {option('out')}")
    ranks = list(plan.ranks.values())
    common = max(set(ranks), key=ranks.count)
    others = {name: rank for name, rank in plan.ranks.items() if rank != common}
    config = {
        "peft_type": "LORA", "r": common, "lora_alpha": common, "rank_pattern": others, "alpha_pattern": others,
        "target_modules": sorted(plan.ranks), "bias": "none", "lora_dropout": 0.0, "inference_mode": True,
    }  # fmt: skip
    with atomic_folder(path) as temporary:
        entries = peft_entries(plan, {name: f"base_model.model.{name}" for name in plan.shapes})
        write_safetensors(temporary / PEFT_WEIGHTS[0], entries, metadata)
        write_json(temporary / PEFT_CONFIG, config)


def write_safetensors(path: Path, entries: Iterable[Entry], metadata: Mapping[str, str]) -> None:
    """Write the entries in the order of their keys. Each is made, written and freed before the next.

    The safetensors library's own writer needs all tensors in memory and does not order the metadata.
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    entries, offset = sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.key)), 0
    for key, shape, dtype, _ in entries:
        end = offset + dtype.itemsize * torch.Size(shape).numel()
        header[key] = {"dtype": SAFETENSORS_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            file.write(bytes_of(entry))


def bytes_of(entry: Entry) -> bytes:
    """The tensor's bytes in the entry's type. Raises FewstepError when a value does not fit in that type."""
    made = entry.make().detach().cpu()
    tensor = made.to(entry.dtype)
    assert tensor.shape == torch.Size(entry.shape), entry.key
    if entry.dtype.is_floating_point and not survives(made, tensor):
        raise FewstepError(
            f"{entry.key} holds values too large for {SAFETENSORS_NAMES[entry.dtype]}",
            f"write it with {option('dtype')} fp32",
        )
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def survives(made: Tensor, tensor: Tensor) -> bool:
    """Whether all values are finite after conversion. 8-bit types cannot hold infinity, so their range is compared.

    Rounding keeps the order, so the smallest and the largest value suffice. They are NaN if any value is.
    """
    if tensor.dtype.itemsize > 1:
        return made.numel() == 0 or bool(torch.stack(made.aminmax()).to(tensor.dtype).isfinite().all())
    return made.dtype == tensor.dtype or bool((made.abs() <= torch.finfo(tensor.dtype).max).all())
