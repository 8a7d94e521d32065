"""How a LoRA or a distilled model wants to be sampled: read from and written to its metadata."""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, ValidationError

from fewstep import __version__
from fewstep.configs import METHOD_NAMES, Grid, Solver
from fewstep.errors import FewstepError
from fewstep.families import FAMILIES
from fewstep.io import brief

KEY = "fewstep.recipe"
OF_OTHERS = ("hyper-sd", "lightning", "dmd2", "tdm", "swd", "nitro", "turbo", "flash")
ACCELERATIONS = (*METHOD_NAMES, *OF_OTHERS)  # methods that make a model a few-step one
VERSION = "fewstep.version"  # of the program that wrote the file


class Recipe(BaseModel):
    """What sampling with this file takes, and what it was made from. Unknown fields of newer files are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    method: str  # of ACCELERATIONS, or "denoising": a style, a subject, a fine-tuned model
    family: str = "custom"
    prediction_type: str = "epsilon"
    solver: Solver = "auto"  # the sampler's; auto = as without this file
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None  # it was made for; None = as without this file
    guidance_scale: Annotated[float, Field(ge=0, le=50)] | None = None  # to sample with, 1 = off; None likewise
    k: Annotated[int, Field(ge=1, le=1000)] | None = None  # skipping step of the training grid
    grid: Grid | None = None  # of timesteps to sample at: lcm or quadratic with a k, or trailing; None = lcm with a k
    edges: tuple[NonNegativeInt, ...] | None = None  # timesteps at which pcm's phases begin, the noisiest first
    eta: Annotated[float, Field(ge=0, le=1)] | None = None  # of ddim; None = the solver's own
    gamma: Annotated[float, Field(ge=0, le=1)] | None = None  # of tcd, likewise
    teacher_guidance_scale: tuple[FiniteFloat, FiniteFloat] | None = None  # distilled in, lowest and highest; = 1 + w
    guidance_convention: str = "guidance_scale = 1 + w"
    base_model: str = ""
    base_sha256: str = ""
    licence: str = ""  # of the model it was made from, which holds for it too; "" = not known
    training: Mapping[str, Any] = {}
    caveat: str = ""  # what its makers do to sample with it and fewstep does not
    recognised_by: str = ""  # the words in its name that told all this, of a file of others that carries no recipe

    @property
    def accelerates(self) -> bool:
        """Whether it makes its model a few-step one."""
        return self.method in ACCELERATIONS


def to_metadata(recipe: Recipe, rank: int | None = None) -> dict[str, str]:
    """safetensors metadata: the recipe, and the hints other tools read."""
    metadata = {"format": "pt", VERSION: __version__, KEY: recipe.model_dump_json()}
    if recipe.licence:
        metadata["license"] = recipe.licence
    if rank is not None:
        metadata |= {"ss_network_dim": str(rank), "ss_network_alpha": str(float(rank))} | naming_of(recipe)
    return metadata


def naming_of(recipe: Recipe) -> dict[str, str]:
    """The metadata by which other tools tell a LoRA's family; nothing for a family that none of them knows.

    AUTOMATIC1111 hides LoRAs of another family than the checkpoint's, and takes those without these for SD 1.
    """
    family = FAMILIES.get(recipe.family)
    if family is None or family.naming is None:
        return {}
    naming, v = family.naming, recipe.prediction_type == "v_prediction"
    architecture = (v and naming.v_architecture) or naming.architecture
    return {
        "ss_base_model_version": (v and naming.v_version) or naming.version,
        "ss_v2": str(naming.version.startswith("sd_v2")),
        "modelspec.architecture": f"{architecture}/lora",
    }


def from_metadata(metadata: Mapping[str, str], path: str) -> Recipe | None:
    """The recipe in a file's metadata, or None for files of other tools. What newer versions add is ignored."""
    if KEY not in metadata:
        return None
    where = f"the sampling recipe inside {path}"
    hint = "get a newer fewstep" if is_newer(metadata) else "get the file again from its source"
    try:
        values = json.loads(metadata[KEY])
    except (ValueError, RecursionError) as error:
        raise FewstepError(f"{where} is damaged ({type(error).__name__})", hint) from error
    return checked_recipe(values, where, hint)


def checked_recipe(values: Any, where: str, hint: str) -> Recipe:
    """The recipe of a JSON value; FewstepError naming `where` it stands and what of it cannot be."""
    if not isinstance(values, dict):
        raise FewstepError(f"{where} is damaged: it is {brief(values)} and no JSON object", hint)
    try:
        return Recipe(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key, reason = ".".join(map(str, first["loc"])), first["msg"][:1].lower() + first["msg"][1:]
        value = "missing" if first["type"] == "missing" else brief(first["input"])
        raise FewstepError(f"{where} is damaged: {key} is {value} ({reason})", hint) from error


def is_newer(metadata: Mapping[str, str]) -> bool:
    """Whether a file was written by a newer version than this one, as far as it can be told."""
    return KEY in metadata and release(metadata.get(VERSION, "")) > release(__version__)


def release(version: str) -> tuple[int, ...]:
    """The numbers a version begins with: (1, 2) of 1.2rc1."""
    found = re.match(r"\d{1,9}(\.\d{1,9})*", version)
    return tuple(map(int, found[0].split("."))) if found else ()
