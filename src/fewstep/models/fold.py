"""Folding an update into a model on disk, tensor by tensor: W0 + Delta W, rounded once to the type it is stored in."""

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

Changes = dict[tuple[Path, str], list[tuple[Origin, str]]]  # tensor of a file -> what parts of it are which modules
WEIGHTS = {".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx"}  # what files of weights end in


@doing("writing the model")
def fold_on_disk(
    model: Path, out: Path, modules: Mapping[str, LowRank], notes: Mapping[str, str] | None = None
) -> dict[torch.dtype, float]:
    """Write to `out` the model with the updates folded in, of the same kind: a folder, or a single file.

    What comes back is the share of the updates that rounding to each stored type loses, as `lost_share` has it. Of a
    folder every variant (fp16 beside fp32, say) is folded; weights in other formats than safetensors, and single files
    beside the folder's parts, would stay as they were and are left out. notes: more metadata, of the files that change.
    Raises FewstepError, before anything is written, for a module whose weight the model does not have.
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
    """What changes, by file and tensor."""
    changes: Changes = {}
    for name, place in places:
        changes.setdefault((place.file, place.origin.key), []).append((place.origin, name))
    return changes


def others(at: str, names: list[str], folded: set[str]) -> set[str]:
    """What is not copied: hidden files, and in the folders that are folded all weights, which are written anew."""
    return {name for name in names if name.startswith(".") or (at in folded and Path(name).suffix in WEIGHTS)}


def rewrite(
    source: Path, target: Path, changes: Changes, modules: Mapping[str, LowRank], notes: Mapping[str, str]
) -> list[Rounding]:
    """Write the file's tensors again, those in `changes` with their updates; what each of these loses comes back."""
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
    """Makes one tensor: as stored, or W0 + Delta W in float32, of it or of its parts.

    Adds to `found` what rounding to `dtype` will lose.
    """

    def make() -> Tensor:
        tensor: Tensor = file.get_tensor(key)
        if changed:
            tensor = tensor.to(torch.float32, copy=True)
            refuse_lost(path, key, tensor)
        for origin, name in changed:
            weight = at_origin(tensor, origin)
            added = modules[name].delta().view(weight.shape)  # the shapes may differ in a kernel of 1 x 1
            rows = some_rows(weight)
            before = weight[rows].clone()
            weight += added
            found.append(rounding(before, weight[rows].to(dtype), added[rows], len(weight)))
        return tensor

    return make
