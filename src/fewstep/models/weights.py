"""The weights of a model as they lie on disk, one at a time: a diffusers folder, or a checkpoint in the LDM layout."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fewstep.assets import shipped_model
from fewstep.errors import FewstepError
from fewstep.families import FAMILIES, ModuleShape
from fewstep.families.ldm import ldm_names
from fewstep.hub import resolved
from fewstep.lora.dialects import TEXT, text_module

COMPONENTS = {"unet": "", "text_encoder": "text_encoder.", "text_encoder_2": "text_encoder_2."}
LDM_UNET = "model.diffusion_model."
LDM_TEXT = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")  # of SD 1.x, of SDXL
TABLES = ("token_embedding", "position_embedding")  # 2-D weights of no Linear
WEIGHT = ".weight"


class Place(NamedTuple):
    """Where one tensor lies."""

    file: Path
    key: str


def model_path(name: str) -> Path:
    """The folder or file of a model: the embedded one's, the hub's, or `name` itself. Raises FewstepError for none."""
    path = shipped_model(name) or resolved(name)
    if not path.exists():
        raise FewstepError(
            f"model {name} not found", "give a Stable Diffusion folder or .safetensors file, or a hub id owner/name"
        )
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


def opened(file: Path) -> Any:
    """The open safetensors file. Raises FewstepError when it is not one."""
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise FewstepError(f"{file} is not a readable safetensors file ({error})", "copy the model again") from error
