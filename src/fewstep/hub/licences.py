"""The licence and the title of a model or LoRA, from the table of aliases or from its card."""

import re
from collections.abc import Iterator
from pathlib import Path

from yaml import YAMLError

from fewstep.hub.names import ALIASES, APACHE_2, OPENRAIL_M, OPENRAIL_PP, HubName, hub_name
from fewstep.hub.resolve import hub

CARD = "README.md"
SPELLINGS = {  # as cards on the hub spell a licence -> as SPDX does
    "apache-2.0": APACHE_2.name,
    "creativeml-openrail-m": OPENRAIL_M.name,
    "openrail++": OPENRAIL_PP.name,
    "mit": "MIT",
    "cc0-1.0": "CC0-1.0",
    "cc-by-4.0": "CC-BY-4.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
}
GENERIC = ("model", "models", "base", "out", "checkpoint")  # names of folders that tell nothing
_SNAPSHOT = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/[^/]+(?:/(?P<file>.+))?$")


def licence_of(name: str | Path) -> str | None:
    """The licence of an alias, a hub id or a path, spelled as SPDX does; None if this machine does not know it.

    The table of aliases is read first, then the card beside the files. The hub is not asked.
    """
    path = Path(name).expanduser()
    place = repository_of(path) if path.exists() else hub_name(str(name))
    known = next((a.licence.name for a in ALIASES.values() if place and a.place.repository == place.repository), None)
    return known or next(filter(None, map(card_licence, cards(path, place))), None)


def cards(path: Path, place: HubName | None) -> Iterator[Path]:
    """The paths where the card of a model or LoRA may be."""
    if path.exists():
        yield (path if path.is_dir() else path.parent) / CARD
    if place is not None and (snapshot := hub().snapshot(place)) is not None:
        yield snapshot / CARD


def card_licence(card: Path) -> str | None:
    """The licence in a card's front matter; None if there is none. It may be one without an identifier on the hub."""
    from huggingface_hub import metadata_load  # slow, and few read cards

    try:
        facts = metadata_load(card) or {}
    except (OSError, ValueError, YAMLError):
        return None
    licence = facts.get("license_name") if facts.get("license") == "other" else facts.get("license")
    if isinstance(licence, list):
        licence = "; ".join(map(str, licence))
    return SPELLINGS.get(licence.lower(), licence) if isinstance(licence, str) and licence else None


def repository_of(path: Path) -> HubName | None:
    """The place on the hub that a path in the hub's cache came from; None for other paths."""
    found = _SNAPSHOT.search(path.absolute().as_posix())
    return HubName(f"{found['owner']}/{found['name']}", file=found["file"] or "") if found else None


def title_of(path: Path) -> str:
    """The title of a model's folder or file: its hub id if it came from the hub, else its name.

    A generic name, such as "model", comes with the name of the folder above.
    """
    parts = path.resolve().parts
    return str(repository_of(path) or "/".join(parts[-2:] if parts[-1] in GENERIC else parts[-1:]))
