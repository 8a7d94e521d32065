"""Shards of WebDataset, here or on a server: .tar files in which an image and its caption have one key."""

from collections.abc import Collection
from pathlib import Path

from fewstep.data.archives import Tar
from fewstep.data.places import is_address, is_pattern, named_files
from fewstep.data.sources.archived import archived_samples
from fewstep.data.sources.shards import Shards
from fewstep.data.sources.source import Source
from fewstep.io import is_file

LAYOUT = "a .tar of these, or shards such as shards/{000..012}.tar, 's3://bucket/*.tar'"


def takes(given: str) -> bool:
    """Whether this is a .tar, a pattern of .tar files or the address of one."""
    if not given.lower().endswith(".tar"):
        return False
    return is_address(given) or is_file(Path(given)) or is_pattern(given)


def open_source(given: str, captioned: bool, columns: Collection[str]) -> Source:
    """The images of all shards, in the shards' order."""
    return Shards(
        named_files(given), lambda place, left_out: archived_samples(Tar(place), captioned, columns, left_out)
    )
