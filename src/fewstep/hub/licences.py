"""Under which licence a model or LoRA is, and what it is called: by the table, or by its card."""

import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import metadata_load
from yaml import YAMLError

from fewstep.hub.names import ALIASES, APACHE_2, OPENRAIL_M, OPENRAIL_PP, HubName, hub_name
from fewstep.hub.resolve import hub

CARD = "README.md"
SPELLINGS = {  # of the hub's cards
    "apache-2.0": APACHE_2.name,
    "creativeml-openrail-m": OPENRAIL_M.name,
    "openrail++": OPENRAIL_PP.name,
    "mit": "MIT",
    "cc0-1.0": "CC0-1.0",
    "cc-by-4.0": "CC-BY-4.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
}
SAYING_NOTHING = ("model", "models", "base", "out", "checkpoint")  # names of folders
_SNAPSHOT = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/[^/]+(?:/(?P<file>.+))?$")


def licence_of(name: str | Path) -> str | None:
    """The licence of an alias, a hub id or a path, in SPDX's manner; None when nothing here says it.

    The table of aliases is asked first, then the card of the files on this machine; the hub is not.
    """
    path = Path(name).expanduser()
    place = repository_of(path) if path.exists() else hub_name(str(name))
    known = next((a.licence.name for a in ALIASES.values() if place and a.place.repository == place.repository), None)
    return known or next(filter(None, map(card_licence, cards(path, place))), None)


def cards(path: Path, place: HubName | None) -> Iterator[Path]:
    """Where a card may be."""
    if path.exists():
        yield (path if path.is_dir() else path.parent) / CARD
    if place is not None and (snapshot := hub().snapshot(place)) is not None:
        yield snapshot / CARD


def card_licence(card: Path) -> str | None:
    """The licence a card's front matter names; its own name for one that the hub has no identifier for."""
    try:
        facts = metadata_load(card) or {}
    except (OSError, ValueError, YAMLError):
        return None
    licence = facts.get("license_name") if facts.get("license") == "other" else facts.get("license")
    if isinstance(licence, list):
        licence = "; ".join(map(str, licence))
    return SPELLINGS.get(licence.lower(), licence) if isinstance(licence, str) and licence else None


def repository_of(path: Path) -> HubName | None:
    """What on the hub a path inside its cache came from; None for other paths."""
    found = _SNAPSHOT.search(path.absolute().as_posix())
    return HubName(f"{found['owner']}/{found['name']}", file=found["file"] or "") if found else None


def title_of(path: Path) -> str:
    """What a model's folder or file is called: its hub id, if it came from there, else its name.

    Of a folder whose name says nothing the one above is named too.
    """
    parts = path.resolve().parts
    return str(repository_of(path) or "/".join(parts[-2:] if parts[-1] in SAYING_NOTHING else parts[-1:]))
