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
from studies.limits.page import LIMITS, page
from studies.pages import DOCS

OUT = DOCS / "limits.md"
LARGEST = 75_000  # bytes of a picture


class LimitsConfig(Config):
    """Measure the limits of LCM-LoRA on the embedded model, and write the page that shows them."""

    sections: str = ",".join(LIMITS)
    """Which of them, by number; the others stay as they were measured last."""
    images: Annotated[int, Field(ge=8)] = 128
    """For each line of a table, of the same prompts and noise within a table."""
    paths: Annotated[int, Field(ge=2)] = 12
    """Of section 2: pairs of noises, and pairs of prompts."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Pictures drawn at once."""
    precision: Precision = "bf16"
    """Of the networks that draw. Where pictures differ by little, in sections 2 and 4, they compute in fp32."""
    device: Device = "auto"
    """Where to compute."""
    out: Path = OUT
    """The page; the figures stand beside it as .json, the pictures in pictures/."""


def chosen(text: str) -> list[str]:
    """The numbers of sections in 1,4,5. Raises UsageError for one that there is not."""
    numbers = [part.strip() for part in text.split(",")]
    for number in numbers:
        if number not in LIMITS:
            raise UsageError(f"--sections {text}: there is no section {number!r}", f"there are {', '.join(LIMITS)}")
    return sorted(set(numbers))


def run(config: LimitsConfig) -> None:
    """Measure section by section; figures, pictures and page are written after each."""
    numbers = chosen(config.sections)
    fast = Lab(config.device, config.precision, config.batch_size)
    bench = Bench(fast, Lab(config.device, "fp32", config.batch_size), config.images, config.paths)
    kept = config.out.with_suffix(".json")
    document: dict[str, Any] = read_json(kept, "figures") if kept.exists() else {"sections": {}}
    for number in numbers:
        print(f"section {number}", file=sys.stderr)
        measured = LIMITS[number].measure(bench)
        sections = {**document["sections"], number: {**facts(bench), **measured.figures}}
        document = {"sections": dict(sorted(sections.items()))}
        for name, picture in measured.pictures.items():
            write_bytes(config.out.parent / "pictures" / f"limits-{name}.jpg", small_jpeg(picture, LARGEST))
        write_json(kept, document)
        write_bytes(config.out, page(document).encode())
