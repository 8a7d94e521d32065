"""Folding an update into a model on disk, tensor by tensor: W0 + Delta W, rounded once to the type it is stored in."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.io import atomic_folder, atomic_path
from fewstep.lora.low_rank import LowRank
from fewstep.lora.writing import DTYPES, Entry, write_safetensors
from fewstep.models.weights import Place, module_places, opened, read

TORCH = {name: dtype for dtype, name in DTYPES.items()}


def fold_on_disk(
    model: Path, out: Path, modules: Mapping[str, LowRank], notes: Mapping[str, str] | None = None
) -> None:
    """Write to `out` the model with the updates folded in, of the same kind: a folder, or a single file.

    notes: more metadata, of the files that change. Raises FewstepError, before anything is written, for a module whose
    weight the model does not have.
    """
    places = module_places(model)
    missing = [name for name in modules if name not in places]
    if missing:
        raise FewstepError(f"{model} has no weight for {missing[0]}", "use a LoRA made for this model's family")
    changes = {places[name]: name for name in modules}
    files = {place.file for place in changes}
    if model.is_file():
        with atomic_path(out) as temporary:
            rewrite(model, temporary, changes, modules, notes or {})
        return
    with atomic_folder(out) as folder:
        kept = {str(file) for file in files}
        shutil.copytree(model, folder, dirs_exist_ok=True, ignore=lambda at, names: others(at, names, kept))
        for file in files:
            rewrite(file, folder / file.relative_to(model), changes, modules, notes or {})


def others(at: str, names: list[str], rewritten: set[str]) -> set[str]:
    """What is not copied: the files that are written anew, and hidden ones."""
    return {name for name in names if str(Path(at) / name) in rewritten or name.startswith(".")}


def rewrite(
    source: Path, target: Path, changes: Mapping[Place, str], modules: Mapping[str, LowRank], notes: Mapping[str, str]
) -> None:
    """Write the file's tensors again, those in `changes` with their update."""
    file = opened(source)
    entries = []
    for key in file.keys():  # noqa: SIM118
        part, place = file.get_slice(key), Place(source, key)
        dtype, shape = TORCH[part.get_dtype()], tuple(part.get_shape())
        entries.append(Entry(key, shape, dtype, maker(place, changes.get(place), modules)))
    write_safetensors(target, entries, {**(file.metadata() or {}), **notes})


def maker(place: Place, name: str | None, modules: Mapping[str, LowRank]) -> Callable[[], Tensor]:
    """Makes one tensor: as stored, or with its update."""
    return lambda: read(place) if name is None else updated(read(place), modules[name])


def updated(weight: Tensor, update: LowRank) -> Tensor:
    """W0 + Delta W in float32; the shapes may differ in a kernel of 1 x 1."""
    total: Tensor = weight.to(torch.float32) + update.delta().view(weight.shape)
    return total
