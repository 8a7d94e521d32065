"""Acceleration LoRAs of others, which carry no recipe: recognised by their names, sampled as their makers say.

Sources: LCM-LoRA arXiv 2311.05556; TCD 2402.19159; Hyper-SD 2404.13686; SDXL-Lightning 2402.13929; PCM 2405.18407.
PCM's files (huggingface.co/wangfuyun/PCM_Weights) are pcm_sd15_smallcfg_2step_converted and so on, of 2 to 16 steps,
at guidance 1; ..._normalcfg_..., distilled without guidance in them, at 7.5; and ..._lcmlike_lora_..., for LCM's
solver: so says demo/app.py of github.com/G-U-N/Phased-Consistency-Model. Its training scripts validate with DDIM on
the trailing timesteps, and the demo's TCD scheduler at gamma 0 is DDIM too.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from fewstep.lora.dialects import PEFT_WEIGHTS, is_text
from fewstep.lora.recipe import Recipe

PCM = Recipe(method="pcm", solver="ddim", steps=4, guidance_scale=1.0)
MADE_FOR = {  # words in the name, all of them: the recipe; the first that fits
    "pcm lcmlike": Recipe(method="pcm", solver="lcm", steps=4, guidance_scale=1.0, k=20),
    "pcm normalcfg": PCM.model_copy(update={"guidance_scale": 7.5}),
    "pcm": PCM,
    "tcd": Recipe(method="tcd", solver="tcd", steps=4, guidance_scale=1.0, k=20),
    "hyper": Recipe(method="hyper-sd", solver="ddim", steps=4, guidance_scale=1.0),
    "lightning": Recipe(method="lightning", solver="ddim", steps=4, guidance_scale=1.0),
    "lcm": Recipe(method="lcd", solver="lcm", steps=4, guidance_scale=1.0, k=20),
}
GENERIC = (
    "pytorch_lora_weights",
    Path(PEFT_WEIGHTS[0]).stem,
    "lora",
    "model",
)  # names that say nothing: the folder's does
DEPTH = 3  # folders above a file of such a name: a hub's cache has snapshots/<revision> between
STEPS = re.compile(r"(\d+)[-_ ]?steps?(?![a-z])")


def known_recipe(path: Path, spelled: Iterable[str]) -> Recipe | None:
    """How the file's makers say to sample with it, if its name is of an acceleration known here, else None.

    spelled: its modules as it spells them. Such a file leaves text encoders alone: one that does not is something else
    with the words in its name.
    """
    if any(map(is_text, spelled)):
        return None
    named = path.stem.lower()
    text = " ".join(part.lower() for part in path.parts[-1 - DEPTH : -1]) if named in GENERIC else named
    for words, recipe in MADE_FOR.items():
        if all(re.search(rf"(?<![a-z]){word}(?![a-z])", text) for word in words.split()):
            steps = STEPS.search(text)
            made_for = {"steps": int(steps[1])} if steps and 1 <= int(steps[1]) <= 16 else {}
            return recipe.model_copy(update={"recognised_by": words, **made_for})
    return None
