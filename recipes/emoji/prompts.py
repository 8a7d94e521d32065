"""The prompts `names` that ship: what the drawings show, by name alone, of things and faces rather than of people.

    python -m recipes.emoji.prompts

Clocks, signs and families look too much alike to tell which one a picture shows; of people some are taken.
"""

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewstep.assets import CHECKSUMS, FOLDER, PROMPTS, checksums, shipped_kit
from fewstep.cli import main_of
from fewstep.configs import Config
from fewstep.io import cache_dir, write_bytes, write_json
from fewstep.metrics.reference import load_reference
from recipes.emoji.built import read_metadata
from recipes.emoji.captions import spoken

COUNT = 1056  # twice as many pictures are enough for a Fréchet distance; of 16 groups of prompts none is larger
LEFT_OUT = ("symbols", "people-body")
CLOCKS = ("o'clock", "-thirty")
PEOPLE = ("man", "woman", "person", "people", "men", "women", "family", "kiss", "couple")  # variants of one drawing


class PromptsConfig(Config):
    """Write the names of what the drawings show where fewstep ships them."""

    images: Path = cache_dir() / "emoji" / "images"
    """The folder dataset.py built."""
    out: Path = FOLDER
    """The package's folder of assets."""


def run(config: PromptsConfig) -> None:
    """Choose, write, and list the checksums."""
    known = set(load_reference(shipped_kit() / "reference.safetensors").concepts)
    lines = names([row for row in read_metadata(config.images, ["base"]) if row["concept"] in known])
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_bytes(config.out / PROMPTS / "names.jsonl", text.encode())
    write_json(config.out / CHECKSUMS, checksums(config.out))


def names(rows: Sequence[dict[str, Any]], count: int = COUNT) -> list[dict[str, str]]:
    """The prompts, shuffled once and for all so that the first few are of all kinds; rows: of the data set."""
    label_of = {row["concept"]: (spoken(row["label"]), row["group"]) for row in rows}
    things = [code for code, (label, group) in label_of.items() if group not in LEFT_OUT and not label.endswith(CLOCKS)]
    people = [code for code, (label, group) in label_of.items() if group == "people-body" and is_one(label)]
    mixed = random.Random(0)
    mixed.shuffle(people)
    chosen = (things + people)[:count]
    mixed.shuffle(chosen)
    return [{"text": label_of[code][0], "style": "none", "concept": code} for code in chosen]


def is_one(label: str) -> bool:
    """Whether a label of people and bodies is not one of the variants of one drawing."""
    return label.split(",")[0].split()[0] not in PEOPLE and "facing right" not in label


if __name__ == "__main__":
    sys.exit(main_of(PromptsConfig, run))
