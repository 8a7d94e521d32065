"""Acceleration LoRAs of others, which carry no recipe: recognised by their names, sampled as their makers say."""

import re
from collections.abc import Iterable
from pathlib import Path

from fewstep.lora.dialects import TEXT
from fewstep.lora.recipe import Recipe

MADE_FOR = {  # a word in the name: the recipe (TCD arXiv 2402.19159, Hyper-SD 2404.13686, SDXL-Lightning 2402.13929)
    "tcd": Recipe(method="tcd", solver="tcd", steps=4, guidance_scale=1.0, k=20),
    "hyper": Recipe(method="hyper-sd", solver="ddim", steps=4, guidance_scale=1.0),
    "lightning": Recipe(method="lightning", solver="ddim", steps=4, guidance_scale=1.0),
    "lcm": Recipe(method="lcd", solver="lcm", steps=4, guidance_scale=1.0, k=20),
}
GENERIC = ("pytorch_lora_weights", "adapter_model", "lora", "model")  # names that say nothing: the folder's does
DEPTH = 3  # folders above a file of such a name: a hub's cache has snapshots/<revision> between
STEPS = re.compile(r"(\d+)[-_ ]?steps?(?![a-z])")


def known_recipe(path: Path, modules: Iterable[str]) -> Recipe | None:
    """How the file's makers say to sample with it, if its name is of an acceleration known here, else None.

    Such a file leaves text encoders alone: one that does not is something else with the word in its name.
    """
    if any(name.startswith(TEXT) for name in modules):
        return None
    named = path.stem.lower()
    text = " ".join(part.lower() for part in path.parts[-1 - DEPTH : -1]) if named in GENERIC else named
    for word, recipe in MADE_FOR.items():
        if re.search(rf"(?<![a-z]){word}(?![a-z])", text):
            steps = STEPS.search(text)
            made_for = {"steps": int(steps[1])} if steps and 1 <= int(steps[1]) <= 16 else {}
            return recipe.model_copy(update={"recognised_by": word, **made_for})
    return None
