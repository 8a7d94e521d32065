"""Zip archives of captioned images, read where they lie: what is in them is laid out as in a folder."""

from collections.abc import Collection
from pathlib import Path

from fewstep.data.archives import Zip
from fewstep.data.sources.archived import archived_samples
from fewstep.data.sources.shards import Shards
from fewstep.data.sources.source import Source
from fewstep.io import is_file

LAYOUT = "a .zip of a folder"


def takes(given: str) -> bool:
    """Whether this is the path of a .zip."""
    return Path(given).suffix.lower() == ".zip" and is_file(Path(given))


def open_source(given: str, captioned: bool, columns: Collection[str]) -> Source:
    """The archive's images, in its own order."""
    return Shards([given], lambda place, left_out: archived_samples(Zip(place), captioned, columns, left_out))
