"""What ships with fewstep: a small real model, its LoRAs, and a kit of the drawings they were made from.

Made by recipes/emoji. `checksums.json` has the SHA-256 of every file; a file is used only if it fits.
"""

import json
from functools import cache
from pathlib import Path

from fewstep.errors import FewstepError
from fewstep.io import sha256_file

FOLDER = Path(__file__).parent
CHECKSUMS = "checksums.json"

MODEL = "emoji"  # a Stable Diffusion folder
ACCELERATION = "lcm"  # its LCM-LoRA
STYLES = ("high-contrast", "noto-mono")  # style LoRAs that never met it
VOCABULARY = "clip"  # the merges of CLIP's tokenizer, which single-file checkpoints do without
KIT = "kit"  # reference features and a few hundred real drawings
PROMPTS = "prompts"  # lists to compare ways of sampling with, and to train without images
NAMES, GENERAL = "names", "general"  # two of them: of the things that emoji draws, and of everyday pictures
LICENCE = "Apache-2.0"  # of the weights; NOTICE has that of the drawings they were trained on


def shipped_model(name: str) -> Path | None:
    """The folder of the embedded model, checked; None for any other name."""
    return verified(MODEL) if name == MODEL else None


def shipped_lora(name: str) -> Path | None:
    """The file of a shipped LoRA, checked; None for any other name."""
    return verified(f"{name}.safetensors") if name in (ACCELERATION, *STYLES) else None


def shipped_kit() -> Path:
    """The folder of the reference kit, checked."""
    return verified(KIT)


def shipped_prompt_list(name: str) -> Path | None:
    """The file of a shipped list of prompts, checked; None for any other name."""
    files = {file.stem: file for file in verified(PROMPTS).iterdir()}
    return files.get(name)


def shipped_vocabulary() -> Path:
    """The file of CLIP's merges, in order, checked."""
    return verified(VOCABULARY) / "merges.txt.gz"


@cache
def verified(name: str, folder: Path = FOLDER) -> Path:
    """The shipped file or folder `name`, all of it as it was made. Raises FewstepError naming a damaged file."""
    hint = "install fewstep again: its own files are incomplete or changed"
    try:
        sums: dict[str, str] = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FewstepError(f"the list of shipped files, {folder / CHECKSUMS}, is not readable", hint) from error
    members = {file: sum_ for file, sum_ in sums.items() if file == name or file.startswith(f"{name}/")}
    if not members:
        raise FewstepError(f"{name} is not among the shipped files", hint)
    for file, expected in members.items():
        if not (folder / file).is_file():
            raise FewstepError(f"the shipped file {folder / file} is missing", hint)
        if sha256_file(folder / file) != expected:
            raise FewstepError(f"the shipped file {folder / file} is damaged", hint)
    return folder / name


def checksums(folder: Path = FOLDER) -> dict[str, str]:
    """SHA-256 of every file under `folder` but code and the list itself, by path, sorted."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc"))
    return {file.relative_to(folder).as_posix(): sha256_file(file) for file in sorted(files) if file.name != CHECKSUMS}
