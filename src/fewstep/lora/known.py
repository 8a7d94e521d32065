"""Acceleration LoRAs of other makers. They carry no recipe; their names give it, and their makers' instructions.

A name alone is weak evidence: a style may be called "Lightning Bolt". So the file must not change text encoders, as
none of these LoRAs does, and more evidence is needed: see `speaks_for`.

Sources: LCM-LoRA arXiv 2311.05556; TCD 2402.19159; Hyper-SD 2404.13686; SDXL-Lightning 2402.13929; PCM 2405.18407;
DMD2 2405.14867; TDM 2503.06674; SDXL-Turbo 2311.17042; Flash Diffusion 2406.02347; SwD 2503.16397; NitroFusion
2412.02030; and the makers' cards at huggingface.co: ByteDance/Hyper-SD (CFG files at guidance 5 to 8, the one-step file
with TCD), tianweiy/DMD2 (LCM's scheduler at 999, 749, 499, 249), jasperai/flash-sdxl (LCM's scheduler, 4 steps).
PCM's files (wangfuyun/PCM_Weights) are pcm_sd15_smallcfg_2step_converted and so on, of 2 to 16 steps, at guidance 1;
..._normalcfg_..., distilled without guidance in them, at 7.5; and ..._lcmlike_lora_..., for LCM's solver. This is from
demo/app.py of github.com/G-U-N/Phased-Consistency-Model. Its training scripts validate with DDIM on the trailing
timesteps. The demo's TCD scheduler at gamma 0 is DDIM too.
"""

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.configs import Solver
from fewstep.families import FAMILIES, TARGET_SUFFIXES, is_target
from fewstep.lora.dialects import PEFT_WEIGHTS, Spellings, is_text
from fewstep.lora.recipe import Recipe


class Known(NamedTuple):
    """A known acceleration: the words that its name must contain, its recipe, and the evidence needed besides."""

    words: str
    recipe: Recipe
    needed: int = 1  # pieces of evidence; 2 for words that also name other things


def made(method: str, solver: Solver, steps: int = 4, guidance_scale: float = 1.0, **more: Any) -> Recipe:
    """The recipe of another maker's LoRA."""
    return Recipe(method=method, solver=solver, steps=steps, guidance_scale=guidance_scale, **more)


GROWS = "its makers sample it at growing resolutions from timesteps 999, 799, 599 and 399, which fewstep does not do"
SHIFTS = "its makers tell the network a quarter (vibrant) or a half (realism) of each timestep, fewstep all of it"
KNOWN = (  # the first one whose words are all in the name counts
    Known("pcm lcmlike", made("pcm", "lcm", k=20)),
    Known("pcm normalcfg", made("pcm", "ddim", 4, 7.5)),
    Known("pcm", made("pcm", "ddim")),
    Known("tcd", made("tcd", "tcd", k=20)),
    Known("dmd2", made("dmd2", "lcm", grid="trailing")),
    Known("tdm", made("tdm", "ddim", grid="trailing")),
    Known("swd", made("swd", "lcm", grid="trailing", caveat=GROWS)),
    Known("nitrosd", made("nitro", "lcm", k=20, caveat=SHIFTS)),
    Known("hyper cfg", made("hyper-sd", "ddim", 8, 5.0), 2),
    Known("hyper 1step", made("hyper-sd", "tcd", 1, k=20, gamma=1.0), 2),
    Known("hyper", made("hyper-sd", "ddim"), 2),
    Known("lightning", made("lightning", "ddim"), 2),
    Known("turbo", made("turbo", "euler-a", grid="trailing"), 2),
    Known("flash", made("flash", "lcm", k=20), 2),
    Known("lcm", made("lcd", "lcm", k=20)),
)
KINDS = (  # kinds of words that makers add to the name
    r"sd|sdxl|xl|sd(v?[12]|15|21)|ssd|nitrosd",
    r"\d*steps?",
    r"loras?",
)
TECHNICAL = re.compile(  # all words that occur in makers' names
    "|".join(KINDS) + r"|1b|v?\d+|\d+dim|dim\d*|rank\d*|r\d+|(fp|bf|f)(16|32)|half|weights|pytorch|converted|unet|base"
    r"|diffusers|kohya|comfyui|peft|(small|normal)?cfg|preserved|lcmlike|unified|realism|vibrant|distilled|model"
)  # fmt: skip
GENERIC = ("pytorch_lora_weights", Path(PEFT_WEIGHTS[0]).stem, "lora", "model")  # the folder's name says more
DEPTH = 3  # folders above such a file that are examined; in a hub's cache, snapshots/<revision> lies between
STEPS = re.compile(r"(\d+)[-_ ]?steps?(?![a-z])")


def known_recipe(path: Path, spelled: Collection[str]) -> Recipe | None:
    """The recipe that the file's makers recommend, if it is a known acceleration, else None.

    spelled: its modules, as the file spells them.
    """
    if any(map(is_text, spelled)):
        return None
    for name in names_of(path):
        words = re.findall(r"[a-z0-9]+", name)
        known = next((known for known in KNOWN if set(known.words.split()) <= set(words)), None)
        if known and speaks_for(known, words, path.stem.lower() in GENERIC, spelled):
            steps = STEPS.search(name)
            made_for = {"steps": int(steps[1])} if steps and 1 <= int(steps[1]) <= 16 else {}
            return known.recipe.model_copy(update={"recognised_by": known.words, **made_for})
    return None


def names_of(path: Path) -> Iterator[str]:
    """The names that a file goes by, in small letters: its own, or those of its folders, nearest first."""
    if path.stem.lower() not in GENERIC:
        yield path.stem.lower()
        return
    for folder in reversed(path.parts[-1 - DEPTH : -1]):
        yield folder.lower().rpartition("--")[2]  # models--owner--name in a hub's cache


def speaks_for(known: Known, words: Collection[str], folder: bool, spelled: Collection[str]) -> bool:
    """Whether there is enough evidence for a known acceleration, besides the words of its name.

    Each kind of word that makers add (the family, the steps, "lora") is one piece of evidence. So is a name that comes
    from the folder, as in makers' repositories. Both count only if the name has no other words. A file that adapts
    exactly LCM-LoRA's modules is one more piece.
    """
    others = set(words) - set(known.words.split())
    found = sum(any(re.fullmatch(kind, word) for word in words) for kind in KINDS) + folder
    count = found if all(map(TECHNICAL.fullmatch, others)) else 0
    return count >= known.needed or (count + 1 >= known.needed and adapts_all(spelled))


def adapts_all(spelled: Collection[str]) -> bool:
    """Whether these are modules of a known family that have all of LCM-LoRA's 14 suffixes and no others."""
    for family in FAMILIES.values():
        spellings = Spellings(family.all_modules())
        names = {spellings.find(name) for name in spelled}
        if None not in names:
            found = {suffix for suffix in TARGET_SUFFIXES for name in names if f".{name}".endswith(f".{suffix}")}
            return len(found) == len(TARGET_SUFFIXES) and all(is_target(str(name)) for name in names)
    return False
