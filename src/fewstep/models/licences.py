"""Under which licences weights come: as their file's metadata tells, a model's card, or the name of a known base."""

from collections.abc import Iterable, Mapping

from fewstep.assets import LICENCE, MODEL
from fewstep.hub import ALIASES, licence_of
from fewstep.hub.names import OPENRAIL_M, OPENRAIL_PP
from fewstep.models.weights import model_path, opened

KEYS = ("license", "modelspec.license", "ss_license")  # of a safetensors file's metadata
BASES = {  # the last part of a base model's name, in small letters: its licence, as its card on the hub tells
    **{alias.place.repository.rpartition("/")[2].lower(): alias.licence.name for alias in ALIASES.values()},
    MODEL: LICENCE,
    "stable-diffusion-v1-4": OPENRAIL_M.name,
    "stable-diffusion-2": OPENRAIL_PP.name,
    "stable-diffusion-2-base": OPENRAIL_PP.name,
    "stable-diffusion-2-1-base": OPENRAIL_PP.name,
}


def joined(*licences: Iterable[str]) -> dict[str, str]:
    """Metadata that names all these licences, each once; nothing when there are none."""
    found = list(dict.fromkeys(part for some in licences for text in some for part in text.split("; ") if part))
    return {"license": "; ".join(found)} if found else {}


def licences_in(metadata: Mapping[str, str]) -> list[str]:
    """The licences that a file's metadata names."""
    return [metadata[key] for key in KEYS if metadata.get(key)]


def licences_of(model: str) -> list[str]:
    """The licences that a model names: in its file's metadata, or its card; else those of its name."""
    path = model_path(model)
    licences = licences_in(opened(path).metadata() or {}) if path.is_file() else []
    texts = licences or [licence_of(model) or licence_of(path) or ""]
    return [text for text in texts if text] or licences_named(model)


def licences_named(base: str) -> list[str]:
    """The licence of a base model that goes by this name, if it is a known one."""
    name = base.rstrip("/").rpartition("/")[2].partition("@")[0].lower()
    return [BASES[name]] if name in BASES else []
