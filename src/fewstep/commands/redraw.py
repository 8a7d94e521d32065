"""`fewstep sample --redraw`: combines the recipe in a picture with the options that were typed."""

from pathlib import Path
from typing import Any

from fewstep import __version__
from fewstep.configs import SampleConfig, build
from fewstep.errors import FewstepError, option
from fewstep.events import note
from fewstep.io import is_file, sha256_file
from fewstep.session import PictureRecipe, Session
from fewstep.session.canvas import sides
from fewstep.session.loras import LoraFacts
from fewstep.session.plan import TRAINING_GRIDS
from fewstep.session.recipe import StartFacts, read_recipe

AS_THEY_ARE = (
    "negative_prompt", "seed", "model", "live_lora", "solver", "eta", "gamma", "steps", "grid", "guidance_scale",
    "nag_scale", "strength", "outpaint", "controlnet", "sketch", "control_scale", "engine", "dtype", "decoder",
    "no_safety_checker",
)  # fmt: skip
TOGETHER = {  # typed option -> entries of the recipe that it makes void
    "solver": ("eta", "gamma", "grid", "k"),
    "grid": ("k",),
    "mask": ("outpaint",),
    "outpaint": ("mask",),
}


def redrawn(config: SampleConfig) -> SampleConfig:
    """The config that draws the picture `config.redraw` again, changed by the typed options.

    Raises FewstepError for a picture without a recipe, or if a file from which it was started is missing.
    """
    assert config.redraw is not None
    recipe = read_recipe(config.redraw)
    typed = config.model_dump(exclude_unset=True)
    if not config.prompts:
        typed.pop("prompts", None)
    again = fields_of(recipe)
    for name, others in TOGETHER.items():
        again = {other: value for other, value in again.items() if name not in typed or other not in others}
    for name, start in (
        ("image", recipe["image"]),
        ("mask", recipe["mask"]),
        ("control_image", recipe["control_image"]),
    ):
        if start is not None and name not in typed and not typed.keys() & set(TOGETHER.get(name, ())):
            again[name] = started_from(config.redraw, start, name)
    if config.prompt_file is not None:
        again.pop("prompts")
    if recipe["fewstep"] != __version__:
        note(f"fewstep {recipe['fewstep']} drew {config.redraw}, but this is {__version__}: the picture may differ")
    return build(SampleConfig, **(again | typed))


def fields_of(recipe: PictureRecipe) -> dict[str, Any]:
    """The fields of a SampleConfig for the recipe, without the files from which the picture was started."""
    given: dict[str, Any] = dict(recipe)
    left, top, right, bottom = sides(recipe["outpaint"]) if recipe["outpaint"] else (0, 0, 0, 0)
    own = {
        "prompts": (recipe["prompt"],),
        "loras": tuple(map(typed_lora, recipe["lora"])),
        "width": recipe["width"] - left - right,
        "height": recipe["height"] - top - bottom,
    }
    if recipe["grid"] in TRAINING_GRIDS:
        own["k"] = recipe["k"]
    return own | {name: given[name] for name in AS_THEY_ARE if given.get(name) is not None}


def typed_lora(lora: LoraFacts) -> str:
    """A LoRA of a recipe, as people type it."""
    blocks = "".join(f",{block}={number(weight)}" for block, weight in lora["blocks"].items())
    return f"{lora['file']}:{number(lora['weight'])}{blocks}"


def number(value: float) -> str:
    """The shortest text that stands for exactly this weight."""
    return short if float(short := f"{value:g}") == value else repr(value)


def started_from(picture: Path, start: StartFacts, name: str) -> Path:
    """The file from which a picture was started. Raises FewstepError if it is missing."""
    known = start.get("file")
    if known is None or not is_file(Path(known)):
        named = f"{known}, which is missing" if known else "one without a file name"
        raise FewstepError(
            f"{picture} was drawn with a picture as {option(name)}: {named}",
            f"add {option(name)} FILE (its SHA-256 begins with {start['sha256'][:12]})",
        )
    if sha256_file(Path(known)) != start["sha256"]:
        note(f"{known} has changed since {picture} was drawn with it")
    return Path(known)


def tell_changed_loras(config: SampleConfig, session: Session) -> None:
    """Note the LoRA files that have changed since the first drawing of the picture."""
    assert config.redraw is not None
    before = read_recipe(config.redraw)["lora"]
    if config.loras != tuple(map(typed_lora, before)):
        return  # the user typed other LoRAs
    for now, then in zip(session.loras, before, strict=True):
        if now["sha256"] != then["sha256"]:
            note(f"the LoRA {now['file']} has changed since {config.redraw} was drawn with it")
