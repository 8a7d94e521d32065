"""Folds updates into a model on disk, one tensor at a time: W0 + Delta W, rounded once to the stored type."""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.events import doing
from fewstep.families.single_file import Origin
from fewstep.io import atomic_folder, atomic_path
from fewstep.lora.low_rank import LowRank
from fewstep.lora.rounding import Rounding, lost_share, rounding, some_rows
from fewstep.lora.writing import Entry, write_safetensors
from fewstep.models.weights import TYPES, Place, all_places, at_origin, module_places, opened, refuse_lost

Changes = dict[tuple[Path, str], list[tuple[Origin, str]]]  # tensor of a file -> its parts and their modules
WEIGHTS = {".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx"}  # suffixes of weight files


@doing("writing the model")
def fold_on_disk(
    model: Path, out: Path, modules: Mapping[str, LowRank], notes: Mapping[str, str] | None = None
) -> dict[torch.dtype, float]:
    """Write the model with the updates folded in to `out`: a folder from a folder, a single file from a single file.

    Returns stored type -> share of the updates that rounding to it loses, see `lost_share`. In a folder, every variant
    is folded (fp16 and fp32, for example). Weights in formats other than safetensors, and single files in the folder,
    would be stale, so they are left out. notes: more metadata for the changed files.
    Raises FewstepError before anything is written when the model has no weight for a module.
    """
    places = module_places(model)
    missing = [name for name in modules if name not in places]
    if missing:
        raise FewstepError(f"{model} has no weight for {missing[0]}", "use a LoRA made for this model's family")
    found: list[Rounding] = []
    if model.is_file():
        changes = changes_of((name, places[name]) for name in modules)
        with atomic_path(out) as temporary:
            found += rewrite(model, temporary, changes, modules, notes or {})
        return lost_share(found)
    changes = changes_of((name, place) for name, place in all_places(model) if name in modules)
    parts = {file.parent for file, _ in changes}
    folded = {str(part) for part in (model, *parts)}
    with atomic_folder(out) as folder:
        shutil.copytree(model, folder, dirs_exist_ok=True, ignore=lambda at, names: others(at, names, folded))
        for file in sorted(file for part in parts for file in part.glob("*.safetensors")):
            found += rewrite(file, folder / file.relative_to(model), changes, modules, notes or {})
    return lost_share(found)


def changes_of(places: Iterable[tuple[str, Place]]) -> Changes:
    """(file, tensor) -> the parts of it that change, with their modules."""
    changes: Changes = {}
    for name, place in places:
        changes.setdefault((place.file, place.origin.key), []).append((place.origin, name))
    return changes


def others(at: str, names: list[str], folded: set[str]) -> set[str]:
    """The names in folder `at` that are not copied: hidden files, and all weights of the folders that are folded."""
    return {name for name in names if name.startswith(".") or (at in folded and Path(name).suffix in WEIGHTS)}


def rewrite(
    source: Path, target: Path, changes: Changes, modules: Mapping[str, LowRank], notes: Mapping[str, str]
) -> list[Rounding]:
    """Write the file's tensors to `target`, with the updates in `changes`. Returns the rounding of each update."""
    file = opened(source)
    entries = []
    found: list[Rounding] = []
    for key in file.keys():  # noqa: SIM118
        part = file.get_slice(key)
        dtype, shape = TYPES[part.get_dtype()], tuple(part.get_shape())
        entries.append(
            Entry(key, shape, dtype, maker(file, source, key, dtype, changes.get((source, key), ()), modules, found))
        )
    write_safetensors(target, entries, {**(file.metadata() or {}), **notes})
    return found


def maker(
    file: Any,
    path: Path,
    key: str,
    dtype: torch.dtype,
    changed: Sequence[tuple[Origin, str]],
    modules: Mapping[str, LowRank],
    found: list[Rounding],
) -> Callable[[], Tensor]:
    """A function that makes one tensor: as stored, or W0 + Delta W in float32, for the whole tensor or its parts.

    It appends to `found` the loss of rounding to `dtype`.
    """

    def make() -> Tensor:
        tensor: Tensor = file.get_tensor(key)
        if changed:
            tensor = tensor.to(torch.float32, copy=True)
            refuse_lost(path, key, tensor)
        for origin, name in changed:
            weight = at_origin(tensor, origin)
            added = modules[name].delta().view(weight.shape)  # shapes may differ by a 1 x 1 kernel
            rows = some_rows(weight)
            before = weight[rows].clone()
            weight += added
            found.append(rounding(before, weight[rows].to(dtype), added[rows], len(weight)))
        return tensor

    return make
