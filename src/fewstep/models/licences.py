"""Under which licences weights come: as a LoRA file's metadata, a model's card or its name tell."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from fewstep.assets import shipped_model
from fewstep.models.weights import opened

KEYS = ("license", "modelspec.license", "ss_license")  # of a safetensors file's metadata
BASES = {  # the last part of a base model's name: its licence, as its card on huggingface.co tells
    "emoji": "apache-2.0",
    "stable-diffusion-v1-4": "creativeml-openrail-m",
    "stable-diffusion-v1-5": "creativeml-openrail-m",
    "stable-diffusion-2": "openrail++",
    "stable-diffusion-2-base": "openrail++",
    "stable-diffusion-2-1": "openrail++",
    "stable-diffusion-2-1-base": "openrail++",
    "stable-diffusion-xl-base-1.0": "openrail++",
    "ssd-1b": "apache-2.0",
}


def joined(*licences: Iterable[str]) -> dict[str, str]:
    """Metadata that names all these licences, each once; nothing when there are none."""
    found = list(dict.fromkeys(part for some in licences for text in some for part in text.split("; ") if part))
    return {"license": "; ".join(found)} if found else {}


def told_by(metadata: Mapping[str, str]) -> list[str]:
    """The licences that a file's metadata names."""
    return [metadata[key] for key in KEYS if metadata.get(key)]


def licences_of(model: str) -> list[str]:
    """The licences that a model on this machine names: in its card, or its file's metadata; else those of its name."""
    path = shipped_model(model) or Path(model).expanduser()
    said = (opened(path).metadata() or {}) if path.is_file() else card_of(path / "README.md")
    return told_by(said) or licences_named(model)


def licences_named(base: str) -> list[str]:
    """The licence of a base model that goes by this name, if it is a known one."""
    name = base.rstrip("/").rpartition("/")[2].lower()
    return [BASES[name]] if name in BASES else []


def card_of(readme: Path) -> dict[str, str]:
    """The one-line entries at the head of a model card, between lines of ---; nothing when there are none."""
    try:
        text = readme.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    head = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    lines = re.findall(r"^(\w+):[ \t]*([^\r\n]+?)[ \t]*\r?$", head[1], re.MULTILINE) if head else []
    card = {key: value.strip("'\"") for key, value in lines}
    return card | (
        {"license": card["license_name"]} if card.get("license") == "other" and "license_name" in card else {}
    )
