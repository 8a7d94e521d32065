"""Reads a model's weights from disk, one at a time, from a diffusers folder or a checkpoint in the LDM layout."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fewstep.assets import MODEL, shipped_model
from fewstep.errors import FewstepError
from fewstep.events import doing
from fewstep.families import FAMILIES, Family, ModuleShape
from fewstep.families.single_file import TEXT as LDM_TEXT
from fewstep.families.single_file import UNET, Origin, text_origins, text_prefix, unet_origins
from fewstep.hub import not_found, resolved
from fewstep.io import refuse_stand_in, sha256_bytes, sha256_file
from fewstep.lora.dialects import COMPONENTS, TEXT, module_name
from fewstep.lora.files import Base
from fewstep.lora.recipe import Recipe
from fewstep.lora.writing import SAFETENSORS_NAMES

TYPES = {name: dtype for dtype, name in SAFETENSORS_NAMES.items()}  # safetensors' name -> type
TABLES = ("token_embedding", "position_embedding")  # 2-D weights that belong to no Linear
WEIGHT = ".weight"


class Place(NamedTuple):
    """The place of one weight: a file, and in it a tensor or a part of one."""

    file: Path
    origin: Origin


def model_path(name: str) -> Path:
    """The folder or file of a model: the embedded one, one of the hub, or a path. Raises FewstepError if missing."""
    path = shipped_model(name) or resolved(name)
    if not path.exists():
        raise not_found(name)
    return path


def module_places(path: Path) -> dict[str, Place]:
    """Canonical module name -> the place of its weight, for the UNet and the text encoders."""
    if path.is_file():
        return ldm_places(path)
    places: dict[str, Place] = {}
    for name, place in all_places(path):
        places.setdefault(name, place)
    if not any(not name.startswith(TEXT) for name in places):
        raise FewstepError(f"model folder {path} has no UNet in .safetensors files", "name a diffusers folder")
    return places


def all_places(folder: Path) -> Iterator[tuple[str, Place]]:
    """Canonical module name and place of its weight, once for every variant. The plain file comes before fp16's."""
    for component in COMPONENTS:
        files = (folder / component).glob("*.safetensors")
        for file in sorted(files, key=lambda file: (file.name.count("."), file.name)):
            for key in opened(file).keys():  # noqa: SIM118
                name = module_of(key)
                if name is not None:
                    yield module_name(component, name), Place(file, Origin(key))


def ldm_places(path: Path) -> dict[str, Place]:
    """Canonical module name -> the place of its weight, for a single file. Its LDM names decide the family."""
    family = family_of_file(path)
    keys = opened(path).keys()
    origins = _unet_origins(family)
    for part in LDM_TEXT:
        names = {name: name.removeprefix(f"{part}.") for name in family.all_modules() if name.startswith(f"{part}.")}
        prefix = text_prefix(part, keys)
        if names and prefix is not None:
            found = text_origins((body + WEIGHT for body in names.values()), prefix)
            origins |= {name: found[body + WEIGHT] for name, body in names.items()}
    return {name: Place(path, origin) for name, origin in origins.items() if origin.key in keys}


def family_of_file(path: Path) -> Family:
    """The family of the UNet in a single file. Raises FewstepError when it is no known family."""
    file = opened(path)
    keys = [key for key in file.keys() if key.startswith(UNET)]  # noqa: SIM118
    family = family_of_sizes({key: file.get_slice(key).get_shape() for key in keys})
    if family is None:
        raise FewstepError(
            f"{path} is not a Stable Diffusion checkpoint in the original layout",
            f"known families: {', '.join(FAMILIES)}",
        )
    return family


def family_of_sizes(sizes: Mapping[str, Sequence[int]]) -> Family | None:
    """The family whose UNet has these tensors (key -> size, in the original layout); None for no known family.

    All tensors of SSD-1B are also in SDXL, so the largest family that fits counts. conv_in may take more channels, as
    in inpainting models.
    """
    found = []
    for family in FAMILIES.values():
        origins, modules = _unet_origins(family), family.all_modules()
        if all(origin.key in sizes for origin in origins.values()):
            shapes = {name: shape_of_size(sizes[origin.key]) for name, origin in origins.items() if name != "conv_in"}
            if fits({name: shape for name, shape in shapes.items() if shape is not None}, modules):
                found.append((len(origins), family))
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _unet_origins(family: Family) -> dict[str, Origin]:
    """Tensor of the family's UNet -> its place in a single file."""
    names = [name for name in family.all_modules() if not name.startswith(TEXT)]
    return {key.removesuffix(WEIGHT): o for key, o in unet_origins(f"{name}{WEIGHT}" for name in names).items()}


def fits(shapes: Mapping[str, ModuleShape], modules: Mapping[str, ModuleShape]) -> bool:
    """Whether all shapes equal those of the modules. A 1 x 1 Conv2d equals a Linear."""
    return all((s.out, s.in_, max(s.kernel, 1)) == (modules[n].out, modules[n].in_, max(modules[n].kernel, 1))
               for n, s in shapes.items())  # fmt: skip


def weights_of(model: str) -> tuple[Base, dict[str, ModuleShape]]:
    """A function that reads the weight of one module of a model, in float32, and the shapes of all modules."""
    places = module_places(model_path(model))
    return (lambda name: read(places[name])), shapes_of(places)


def stored_types(model: str) -> set[torch.dtype]:
    """The types in which the weights of a model's modules are stored."""
    places = module_places(model_path(model)).values()
    files = {file: opened(file) for file in {place.file for place in places}}
    return {TYPES[files[file].get_slice(origin.key).get_dtype()] for file, origin in places}


def stored_weights(path: Path) -> Callable[[str], Tensor | None]:
    """A function that reads the weight of one module from a model's files, in its stored type, without a copy.

    It returns None for a module whose weight is in none of the files. The files stay open.
    """
    try:
        places = module_places(path)
    except FewstepError:  # the weights are in other formats than safetensors
        return lambda name: None
    files = {file: opened(file) for file in {place.file for place in places.values()}}

    def read_stored(name: str) -> Tensor | None:
        if name not in places:
            return None
        file, origin = places[name]
        return at_origin(files[file].get_tensor(origin.key), origin)

    return read_stored


def shapes_of(places: Mapping[str, Place]) -> dict[str, ModuleShape]:
    """Module -> shape, from the files' headers, for the modules that a LoRA can adapt."""
    shapes = {}
    files = {file: opened(file) for file in {place.file for place in places.values()}}
    for name, (file, origin) in places.items():
        size = files[file].get_slice(origin.key).get_shape()
        if origin.third is not None:
            size = [size[0] // 3, *size[1:]]
        shape = shape_of_size(size[::-1] if origin.transposed else size)
        if shape is not None:
            shapes[name] = shape
    return shapes


def shape_of_size(size: Sequence[int]) -> ModuleShape | None:
    """The shape of a Linear or Conv2d whose weight has this size; None for other tensors."""
    if len(size) == 2:
        return ModuleShape(size[0], size[1], 0)
    return ModuleShape(size[0], size[1], size[2]) if len(size) == 4 and size[2] == size[3] else None


def at_origin(tensor: Tensor, origin: Origin) -> Tensor:
    """The part of a stored tensor that is one tensor of a network, as a view."""
    if origin.third is not None:
        tensor = tensor.chunk(3)[origin.third]
    return tensor.T if origin.transposed else tensor


def read(place: Place) -> Tensor:
    """One weight, in float32. Raises FewstepError if a value is not finite."""
    tensor = at_origin(opened(place.file).get_tensor(place.origin.key), place.origin).float()
    refuse_lost(place.file, place.origin.key, tensor)
    return tensor


def refuse_lost(file: Path, key: str, tensor: Tensor) -> None:
    """Raise FewstepError for a weight of a file that holds NaN or infinity."""
    if lost := lost_values({key: tensor}).get(key):
        raise FewstepError(f"{file} holds values that are not finite: {lost} in {key}", "get the model again")


def lost_values(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Tensor -> number of its values that are NaN or infinite, for the tensors that have any.

    The test is the sum: it is finite if all values are, unless it overflows. It takes a tenth of the time of a test of
    each value; in the tensor's own type, a tenth of that again.
    """
    named = [(name, x) for name, x in tensors.items() if x.is_floating_point() and x.numel()]
    if not named:
        return {}
    own = [x.sum(dtype=None if x.dtype.itemsize > 1 else torch.float32) for _, x in named]
    finite = torch.stack([total.float() for total in own]).isfinite().tolist()
    suspects = [pair for pair, good in zip(named, finite, strict=True) if not good]
    counts = {name: int(x.isfinite().logical_not().sum()) for name, x in suspects}
    return {name: lost for name, lost in counts.items() if lost}


def module_of(key: str) -> str | None:
    """The module whose weight a key is; None for other keys."""
    name = key.removesuffix(WEIGHT)
    return None if name == key or re.search(rf"(^|\.)({'|'.join(TABLES)})$", name) else name


@doing("hashing the model's network")
def unet_sha256(path: Path) -> str:
    """Hash of a model's network: of its weight files; for a single file, of the whole file."""
    if path.is_file():
        return sha256_file(path)
    folder = path / "unet" if (path / "unet").is_dir() else path
    return sha256_bytes(*(sha256_file(f).encode() for f in sorted(folder.glob("*.safetensors"))))


def base_name(recipe: Recipe) -> str:
    """The name of the model that a recipe's LoRA was trained on. The embedded model is recognised by its hash."""
    return MODEL if recipe.base_sha256 and recipe.base_sha256 == embedded_sha256() else recipe.base_model


@cache
def embedded_sha256() -> str:
    """Hash of the embedded model's network."""
    folder = shipped_model(MODEL)
    assert folder is not None
    return unet_sha256(folder)


def opened(file: Path) -> Any:
    """The open safetensors file. Raises FewstepError when it is not one."""
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError, ValueError) as error:
        refuse_stand_in(file)
        raise FewstepError(
            f"{file} is not a readable safetensors file ({error})",
            "name a Stable Diffusion folder or a .safetensors checkpoint; if it is one, get it again",
        ) from error
