"""docs/limits.md, section by section."""

from collections.abc import Callable

from studies.limits.bench import Bench, Measured
from studies.limits.general import general, general_text
from studies.limits.inputs import inputs, inputs_text
from studies.limits.pretrained import pretrained, pretrained_text
from studies.limits.rank import lossy, lossy_text
from studies.limits.smooth import smooth, smooth_text
from studies.limits.speed import speed, speed_text
from studies.limits.words import CERTAIN, Figures, listed
from studies.pages import template

SECTIONS: dict[str, Callable[[Bench], Measured]] = {
    "1": pretrained,
    "2": smooth,
    "3": lossy,
    "4": inputs,
    "5": speed,
    "6": general,
}
TEXTS: dict[str, Callable[[Figures], str]] = {
    "1": pretrained_text,
    "2": smooth_text,
    "3": lossy_text,
    "4": inputs_text,
    "5": speed_text,
    "6": general_text,
}


def section_text(number: str, section: Figures | None) -> str:
    """A section's figures in words, or that there are none."""
    if section is None:
        return f"Not measured yet: `python -m studies.limits --sections {number}` does."
    return f"{how(section)}\n\n{TEXTS[number](section)}"


def how(section: Figures) -> str:
    """What the figures depend on."""
    count = f"{section['paths']} paths of {section['points']} pictures" if "paths" in section else (
        f"{section['images']} pictures a line")  # fmt: skip
    return (
        f"Measured: {count}, the teacher at guidance {section['guidance_scale']:g}, {section['dtype']} on"
        f" {section['device']}; model {section['model_sha256'][:12]}, `lcm` {section['lcm_sha256'][:12]}."
    )


def page(document: Figures) -> str:
    """docs/limits.md."""
    text = template("limits")
    sections = {f"section_{number}": section_text(number, document["sections"].get(number)) for number in TEXTS}
    return text.format(certain=CERTAIN, missing=of_missing(document["sections"]), **sections)


def of_missing(sections: Figures) -> str:
    """Whether all of it was measured, and of one model."""
    missing = [number for number in TEXTS if number not in sections]
    models = {(section["model_sha256"], section["lcm_sha256"]) for section in sections.values()}
    notes = [f"Not measured yet: section {listed(missing)}."] if missing else []
    notes += ["The sections are not all of the same model; each says of which."] if len(models) > 1 else []
    return " ".join(notes) or "All sections are of one and the same model."
