"""The recipe of a picture: all it takes to draw it again."""

from pathlib import Path
from typing import NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # which pydantic can read on Python 3.11 too

from fewstep.errors import FewstepError
from fewstep.images import recipe_in
from fewstep.session.loras import LoraFacts


class StartFacts(TypedDict):
    """What a recipe says of a picture that another was started from."""

    sha256: str  # of the file's bytes
    file: NotRequired[str]  # as it was typed; a session is given bytes


class PictureRecipe(TypedDict):
    """All it takes to draw a picture again. What is None was not asked for, or is not for this solver."""

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
    nfe: float  # network evaluations, rows of guidance counted
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
    no_safety_checker: bool
    fewstep: str  # the version


def read_recipe(picture: Path) -> PictureRecipe:
    """The recipe in a picture's file. Raises FewstepError for a file without one, and for one that is not whole."""
    recipe = recipe_in(picture)
    try:
        return TypeAdapter(PictureRecipe).validate_python(recipe)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise FewstepError(
            f"the recipe in {picture} cannot be read ({place}: {first['msg'][0].lower()}{first['msg'][1:]})",
            f"it says that fewstep {recipe['fewstep']} drew it: use that version",
        ) from None
