"""The licences of weights, from their file's metadata, a model's card, or the name of a known base model."""

from collections.abc import Iterable, Mapping

from fewstep.assets import LICENCE, MODEL
from fewstep.hub import ALIASES, licence_of
from fewstep.hub.names import OPENRAIL_M, OPENRAIL_PP
from fewstep.models.weights import model_path, opened

KEYS = ("license", "modelspec.license", "ss_license")  # in a safetensors file's metadata
BASES = {  # last part of a base model's name, in small letters -> its licence, from its card on the hub
    **{alias.place.repository.rpartition("/")[2].lower(): alias.licence.name for alias in ALIASES.values()},
    MODEL: LICENCE,
    "stable-diffusion-v1-4": OPENRAIL_M.name,
    "stable-diffusion-2": OPENRAIL_PP.name,
    "stable-diffusion-2-base": OPENRAIL_PP.name,
    "stable-diffusion-2-1-base": OPENRAIL_PP.name,
}


def joined(*licences: Iterable[str]) -> dict[str, str]:
    """Metadata that names all these licences, each once; empty when there are none."""
    found = list(dict.fromkeys(part for some in licences for text in some for part in text.split("; ") if part))
    return {"license": "; ".join(found)} if found else {}


def licences_in(metadata: Mapping[str, str]) -> list[str]:
    """The licences that a file's metadata names."""
    return [metadata[key] for key in KEYS if metadata.get(key)]


def licences_of(model: str) -> list[str]:
    """The licences that a model names in its file's metadata or its card; else those known for its name."""
    path = model_path(model)
    licences = licences_in(opened(path).metadata() or {}) if path.is_file() else []
    texts = licences or [licence_of(model) or licence_of(path) or ""]
    return [text for text in texts if text] or licences_named(model)


def licences_named(base: str) -> list[str]:
    """The licence of the base model with this name; empty when the name is not known."""
    name = base.rstrip("/").rpartition("/")[2].partition("@")[0].lower()
    return [BASES[name]] if name in BASES else []
