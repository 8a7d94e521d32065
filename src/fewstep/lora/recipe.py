"""The sampling recipe of a LoRA or a distilled model, and its form in metadata."""

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
ACCELERATIONS = (*METHOD_NAMES, *OF_OTHERS)  # methods that make a few-step model
VERSION = "fewstep.version"  # key: the version of fewstep that wrote the file


class Recipe(BaseModel):
    """The settings to sample with a file, and the file's origin. Unknown fields of newer files are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    method: str  # one of ACCELERATIONS; "denoising" for a style, a subject or a fine-tuned model
    family: str = "custom"
    prediction_type: str = "epsilon"
    solver: Solver = "auto"  # solver to sample with; auto = as without this file
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None  # that it was made for; None = as without this file
    guidance_scale: Annotated[float, Field(ge=0, le=50)] | None = None  # 1 = off; None = as without this file
    k: Annotated[int, Field(ge=1, le=1000)] | None = None  # skipping step of the training grid
    grid: Grid | None = None  # timesteps: lcm or quadratic (both need k), or trailing; None = lcm if there is a k
    edges: tuple[NonNegativeInt, ...] | None = None  # timesteps at which pcm's phases begin, the noisiest first
    eta: Annotated[float, Field(ge=0, le=1)] | None = None  # of ddim; None = the solver's default
    gamma: Annotated[float, Field(ge=0, le=1)] | None = None  # of tcd; None = the solver's default
    teacher_guidance_scale: tuple[FiniteFloat, FiniteFloat] | None = None  # distilled into it: lowest, highest; 1 + w
    guidance_convention: str = "guidance_scale = 1 + w"
    base_model: str = ""
    base_sha256: str = ""
    licence: str = ""  # of the model that it was made from, which also holds for it; "" = not known
    training: Mapping[str, Any] = {}
    caveat: str = ""  # a difference between its makers' way of sampling and fewstep's
    recognised_by: str = ""  # words of its name from which this recipe was guessed; "" = the file carries it

    @property
    def accelerates(self) -> bool:
        """Whether it makes a model a few-step model."""
        return self.method in ACCELERATIONS


def origin_in_words(recipe: Recipe) -> str:
    """What it learnt from, if that are pictures which its own teacher drew; "" otherwise."""
    made = recipe.training.get("synthetic")
    if not isinstance(made, Mapping):
        return ""
    facts = {name: brief(made.get(name)).strip('"') for name in ("solver", "steps", "guidance_scale", "prompts")}
    return (
        f"{brief(recipe.training.get('samples'))} pictures that its teacher drew, in {facts['steps']} steps of"
        f" {facts['solver']} at guidance {facts['guidance_scale']}, after the prompts {facts['prompts']}; no images"
    )


def to_metadata(recipe: Recipe, rank: int | None = None) -> dict[str, str]:
    """safetensors metadata: the recipe, and the entries that other tools read."""
    metadata = {"format": "pt", VERSION: __version__, KEY: recipe.model_dump_json()}
    if recipe.licence:
        metadata["license"] = recipe.licence
    if rank is not None:
        metadata |= {"ss_network_dim": str(rank), "ss_network_alpha": str(float(rank))} | naming_of(recipe)
    return metadata


def naming_of(recipe: Recipe) -> dict[str, str]:
    """The metadata from which other tools learn a LoRA's family; empty for a family that no other tool knows.

    AUTOMATIC1111 hides LoRAs whose family differs from the checkpoint's. A LoRA without these entries is SD 1 for it.
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
    """The recipe in a file's metadata; None for files of other tools. Fields of newer versions are ignored."""
    if KEY not in metadata:
        return None
    where = f"the sampling recipe inside {path}"
    hint = "install a newer fewstep" if is_newer(metadata) else "get the file again from its source"
    try:
        values = json.loads(metadata[KEY])
    except (ValueError, RecursionError) as error:
        raise FewstepError(f"{where} is damaged ({type(error).__name__})", hint) from error
    return checked_recipe(values, where, hint)


def checked_recipe(values: Any, where: str, hint: str) -> Recipe:
    """The recipe in a JSON value. Raises FewstepError that names `where` it is and the value that is wrong."""
    if not isinstance(values, dict):
        raise FewstepError(f"{where} is damaged: it is {brief(values)}, not a JSON object", hint)
    try:
        return Recipe(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key, reason = ".".join(map(str, first["loc"])), first["msg"][:1].lower() + first["msg"][1:]
        value = "missing" if first["type"] == "missing" else brief(first["input"])
        raise FewstepError(f"{where} is damaged: {key} is {value} ({reason})", hint) from error


def is_newer(metadata: Mapping[str, str]) -> bool:
    """Whether the metadata says that a newer version of fewstep wrote the file."""
    return KEY in metadata and release(metadata.get(VERSION, "")) > release(__version__)


def release(version: str) -> tuple[int, ...]:
    """The numbers at the beginning of a version: (1, 2) for 1.2rc1."""
    found = re.match(r"\d{1,9}(\.\d{1,9})*", version)
    return tuple(map(int, found[0].split("."))) if found else ()
