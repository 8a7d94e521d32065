"""Measure section by section, and write the page after each."""

import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from fewstep.configs import Config, Device, Precision
from fewstep.errors import UsageError
from fewstep.io import read_json, write_bytes, write_json
from fewstep.sheets import small_jpeg
from studies.lab import Lab
from studies.limits.bench import Bench, facts
from studies.limits.page import SECTIONS, page
from studies.pages import DOCS

OUT = DOCS / "limits.md"
LARGEST = 75_000  # bytes of a picture


class LimitsConfig(Config):
    """Measure the limits of LCM-LoRA on the embedded model, and write the page that shows them."""

    sections: str = ",".join(SECTIONS)
    """Which of them, by number; the others stay as they were measured last."""
    images: Annotated[int, Field(ge=8)] = 256
    """For each line of a table, of the same prompts and noise within a table."""
    paths: Annotated[int, Field(ge=2)] = 12
    """Of section 2: pairs of noises, and pairs of prompts."""
    earlier: tuple[str, ...] = ()
    """Of section 1: MODEL=LORA, another teacher and its student, several times."""
    full_lcm: str | None = None
    """Of section 3: a model distilled whole, without a LoRA."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Pictures drawn at once."""
    dtype: Precision = "fp32"
    """Precision of the networks that draw."""
    device: Device = "auto"
    """Where to compute."""
    out: Path = OUT
    """The page; the figures stand beside it as .json, the pictures in pictures/."""


def chosen(text: str) -> list[str]:
    """The numbers of sections in 1,4,5. Raises UsageError for one that there is not."""
    numbers = [part.strip() for part in text.split(",")]
    for number in numbers:
        if number not in SECTIONS:
            raise UsageError(f"--sections {text}: there is no section {number!r}", f"there are {', '.join(SECTIONS)}")
    return sorted(set(numbers))


def pairs(earlier: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Model and LoRA of each --earlier. Raises UsageError for what is not two."""
    found = []
    for text in earlier:
        model, _, lora = text.partition("=")
        if not model or not lora:
            raise UsageError(f"--earlier {text} does not name a model and its LoRA", "write --earlier MODEL=LORA")
        found.append((str(Path(model).expanduser()), str(Path(lora).expanduser())))
    return tuple(found)


def run(config: LimitsConfig) -> None:
    """Measure section by section; figures, pictures and page are written after each."""
    numbers, earlier = chosen(config.sections), pairs(config.earlier)
    bench = Bench(
        Lab(config.device, config.dtype, config.batch_size), config.images, config.paths, earlier, config.full_lcm
    )
    kept = config.out.with_suffix(".json")
    document: dict[str, Any] = read_json(kept, "figures") if kept.exists() else {"sections": {}}
    for number in numbers:
        print(f"section {number}", file=sys.stderr)
        measured = SECTIONS[number](bench)
        sections = {**document["sections"], number: {**facts(bench), **measured.figures}}
        document = {"sections": dict(sorted(sections.items()))}
        for name, picture in measured.pictures.items():
            write_bytes(config.out.parent / "pictures" / f"limits-{name}.jpg", small_jpeg(picture, LARGEST))
        write_json(kept, document)
        write_bytes(config.out, page(document).encode())
