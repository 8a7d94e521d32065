"""The weights of a model as they lie on disk, one at a time: a diffusers folder, or a checkpoint in the LDM layout."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fewstep.assets import MODEL, shipped_model
from fewstep.errors import FewstepError
from fewstep.families import FAMILIES, ModuleShape
from fewstep.families.ldm import ldm_names
from fewstep.io import sha256_bytes, sha256_file
from fewstep.lora.dialects import TEXT, text_module
from fewstep.lora.files import Base
from fewstep.lora.recipe import Recipe

COMPONENTS = {"unet": "", "text_encoder": "text_encoder.", "text_encoder_2": "text_encoder_2."}
LDM_UNET = "model.diffusion_model."
LDM_TEXT = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")  # of SD 1.x, of SDXL
SAYING_NOTHING = ("model", "models", "base", "out", "checkpoint")  # names of folders
TABLES = ("token_embedding", "position_embedding")  # 2-D weights of no Linear
WEIGHT = ".weight"


class Place(NamedTuple):
    """Where one tensor lies."""

    file: Path
    key: str


def model_path(name: str) -> Path:
    """The folder or file of a model: the embedded one's, or `name` itself. Raises FewstepError when it is not there."""
    path = shipped_model(name) or Path(name).expanduser()
    if not path.exists():
        raise FewstepError(f"model {name} not found", "give the path of a Stable Diffusion folder or .safetensors file")
    return path


def module_places(path: Path) -> dict[str, Place]:
    """Canonical module name -> where its weight lies, of the UNet and the text encoders."""
    if path.is_file():
        return ldm_places(path)
    places: dict[str, Place] = {}
    for component, prefix in COMPONENTS.items():
        for file in sorted((path / component).glob("*.safetensors")):
            for key in opened(file).keys():  # noqa: SIM118
                name = module_of(key)
                if name is not None:
                    places.setdefault(prefix + text_module(name) if prefix else name, Place(file, key))
    if not any(not name.startswith(TEXT) for name in places):
        raise FewstepError(f"model folder {path} has no UNet in .safetensors files", "give a diffusers folder")
    return places


def ldm_places(path: Path) -> dict[str, Place]:
    """The same of a single file: its family is the one whose LDM names it has."""
    keys = {module_of(key): key for key in opened(path).keys()}  # noqa: SIM118
    for family in FAMILIES.values():
        modules = family.all_modules()
        names = ldm_names([name for name in modules if not name.startswith(TEXT)])
        wanted = {name: f"{LDM_UNET}{old}" for name, old in names.items()}
        places = {name: Place(path, keys[old]) for name, old in wanted.items() if old in keys}
        if len(places) == len(wanted) and fits(shapes_of(places), modules):
            for name in modules:
                body = name.removeprefix(TEXT[0])
                old = next((start + body for start in LDM_TEXT if start + body in keys), None)
                if name.startswith(TEXT[0]) and old is not None:
                    places[name] = Place(path, keys[old])
            return places
    raise FewstepError(
        f"{path} is no Stable Diffusion checkpoint in the original layout", f"known ones: {', '.join(FAMILIES)}"
    )


def fits(shapes: Mapping[str, ModuleShape], modules: Mapping[str, ModuleShape]) -> bool:
    """Whether all shapes are those of the modules, a 1 x 1 Conv2d being as good as a Linear."""
    return all((s.out, s.in_, max(s.kernel, 1)) == (modules[n].out, modules[n].in_, max(modules[n].kernel, 1))
               for n, s in shapes.items())  # fmt: skip


def weights_of(model: str) -> tuple[Base, dict[str, ModuleShape]]:
    """What reads the weights of a model's modules, one at a time, in float32, and their shapes."""
    places = module_places(model_path(model))
    return (lambda name: read(places[name]).float()), shapes_of(places)


def shapes_of(places: Mapping[str, Place]) -> dict[str, ModuleShape]:
    """Module -> shape, of those that a LoRA can adapt, from the files' headers."""
    shapes = {}
    for name, place in places.items():
        size = opened(place.file).get_slice(place.key).get_shape()
        if len(size) == 2:
            shapes[name] = ModuleShape(size[0], size[1], 0)
        elif len(size) == 4 and size[2] == size[3]:
            shapes[name] = ModuleShape(size[0], size[1], size[2])
    return shapes


def read(place: Place) -> Tensor:
    """One tensor, as stored."""
    tensor: Tensor = opened(place.file).get_tensor(place.key)
    return tensor


def module_of(key: str) -> str | None:
    """The module a key is the weight of, or None."""
    name = key.removesuffix(WEIGHT)
    return None if name == key or re.search(rf"(^|\.)({'|'.join(TABLES)})$", name) else name


def unet_sha256(folder: Path) -> str:
    """Hash of a model folder's network: of its weight files."""
    return sha256_bytes(*(sha256_file(f).encode() for f in sorted((folder / "unet").glob("*.safetensors"))))


def base_name(recipe: Recipe) -> str:
    """What the model that a recipe's LoRA was trained on is called; the embedded one is known by its hash."""
    return MODEL if recipe.base_sha256 and recipe.base_sha256 == embedded_sha256() else recipe.base_model


@cache
def embedded_sha256() -> str:
    """Hash of the embedded model's network."""
    folder = shipped_model(MODEL)
    assert folder is not None
    return unet_sha256(folder)


def name_of(folder: Path) -> str:
    """What a model folder is called: by its own name, or by those above it where that says nothing."""
    parts = folder.resolve().parts
    if parts[-2:-1] == ("snapshots",) and parts[-3].startswith("models--"):  # the hub's cache
        return parts[-3].removeprefix("models--").replace("--", "/")
    return "/".join(parts[-2:]) if parts[-1] in SAYING_NOTHING else parts[-1]


def opened(file: Path) -> Any:
    """The open safetensors file. Raises FewstepError when it is not one."""
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise FewstepError(f"{file} is not a readable safetensors file ({error})", "copy the model again") from error
