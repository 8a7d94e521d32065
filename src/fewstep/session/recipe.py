"""The recipe of a picture, which is enough to draw it again."""

from pathlib import Path
from typing import NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic cannot read typing's on Python 3.11

from fewstep.errors import FewstepError
from fewstep.images import recipe_in
from fewstep.io import sha256_bytes
from fewstep.session.loras import LoraFacts


class StartFacts(TypedDict):
    """The entry in a recipe for a picture from which another one was started."""

    sha256: str  # of the file's bytes
    file: NotRequired[str]  # as the user typed it; a session gets only bytes


class PictureRecipe(TypedDict):
    """Everything that is needed to draw a picture again. None: not requested, or not an option of this solver."""

    prompt: str
    negative_prompt: str
    seed: int
    model: str
    lora: list[LoraFacts]
    live_lora: bool
    solver: str
    eta: float | None
    gamma: float | None
    steps: int
    grid: str
    k: int
    timesteps: list[int]
    nfe: float  # network evaluations, counting both branches of guidance
    guidance_scale: float
    nag_scale: float
    image: StartFacts | None
    strength: float | None
    mask: StartFacts | None
    outpaint: str | None
    controlnet: str | None
    control_image: StartFacts | None
    sketch: bool
    control_scale: float | None
    width: int
    height: int
    engine: str
    dtype: str
    decoder: NotRequired[str]  # earlier versions had only full
    no_safety_checker: bool
    fewstep: str  # the version of fewstep


def read_recipe(picture: Path) -> PictureRecipe:
    """The recipe in a picture's file. Raises FewstepError for a file without a recipe, or with an incomplete one."""
    recipe = recipe_in(picture)
    try:
        return TypeAdapter(PictureRecipe).validate_python(recipe)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise FewstepError(
            f"the recipe in {picture} cannot be read ({place}: {first['msg'][0].lower()}{first['msg'][1:]})",
            f"fewstep {recipe['fewstep']} drew the picture: use that version",
        ) from None


def started_from(picture: bytes | None) -> StartFacts | None:
    """The entry in a recipe for a picture to start from; None without one."""
    return None if picture is None else {"sha256": sha256_bytes(picture)}
