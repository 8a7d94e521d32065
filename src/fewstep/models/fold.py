"""Folding an update into a model on disk, tensor by tensor: W0 + Delta W, rounded once to the type it is stored in."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.families.single_file import Origin
from fewstep.io import atomic_folder, atomic_path
from fewstep.lora.low_rank import LowRank
from fewstep.lora.writing import DTYPES, Entry, write_safetensors
from fewstep.models.weights import at_origin, module_places, opened

Changes = dict[tuple[Path, str], list[tuple[Origin, str]]]  # tensor of a file -> what parts of it are which modules
TORCH = {name: dtype for dtype, name in DTYPES.items()}


def fold_on_disk(model: Path, out: Path, modules: Mapping[str, LowRank]) -> None:
    """Write to `out` the model with the updates folded in, of the same kind: a folder, or a single file.

    Raises FewstepError, before anything is written, for a module whose weight the model does not have.
    """
    places = module_places(model)
    missing = [name for name in modules if name not in places]
    if missing:
        raise FewstepError(f"{model} has no weight for {missing[0]}", "use a LoRA made for this model's family")
    changes: Changes = {}
    for name in modules:
        place = places[name]
        changes.setdefault((place.file, place.origin.key), []).append((place.origin, name))
    files = {file for file, _ in changes}
    if model.is_file():
        with atomic_path(out) as temporary:
            rewrite(model, temporary, changes, modules)
        return
    with atomic_folder(out) as folder:
        kept = {str(file) for file in files}
        shutil.copytree(model, folder, dirs_exist_ok=True, ignore=lambda at, names: others(at, names, kept))
        for file in files:
            rewrite(file, folder / file.relative_to(model), changes, modules)


def others(at: str, names: list[str], rewritten: set[str]) -> set[str]:
    """What is not copied: the files that are written anew, and hidden ones."""
    return {name for name in names if str(Path(at) / name) in rewritten or name.startswith(".")}


def rewrite(source: Path, target: Path, changes: Changes, modules: Mapping[str, LowRank]) -> None:
    """Write the file's tensors again, those in `changes` with their updates."""
    file = opened(source)
    entries = []
    for key in file.keys():  # noqa: SIM118
        part = file.get_slice(key)
        dtype, shape = TORCH[part.get_dtype()], tuple(part.get_shape())
        entries.append(Entry(key, shape, dtype, maker(source, key, changes.get((source, key), ()), modules)))
    write_safetensors(target, entries, file.metadata() or {})


def maker(
    source: Path, key: str, changed: Sequence[tuple[Origin, str]], modules: Mapping[str, LowRank]
) -> Callable[[], Tensor]:
    """Makes one tensor: as stored, or W0 + Delta W in float32, of it or of its parts."""

    def make() -> Tensor:
        tensor: Tensor = opened(source).get_tensor(key)
        if changed:
            tensor = tensor.to(torch.float32, copy=True)
        for origin, name in changed:
            weight = at_origin(tensor, origin)
            weight += modules[name].delta().view(weight.shape)  # the shapes may differ in a kernel of 1 x 1
        return tensor

    return make
