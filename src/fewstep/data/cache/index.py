"""The index of encoded training data: one file that says where the rows of each sample lie.

It takes 8 bytes for a view and 8 for a caption, and where they are needed 8 for the place of a sample's captions and 2
for its shape: 26 MB at most for a million samples with one view and one caption each, and 2.6 GB for 100 million. Files
of rows have up to 1,024 of them, or 64 MiB. So 100 million samples of 512 pixels are some 100,000 files of latents
(32 KiB each in half precision, 3.3 TB in all) and, if all captions differ, 180,000 of embeddings (115 KiB each for SD
1.5, 12 TB).
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewstep.data.cache.encoded import Encoded, Table
from fewstep.data.cache.processes import PATIENCE_S, awaited
from fewstep.data.cache.store import Store, whole
from fewstep.io import atomic_path

FORMAT = "fewstep encoded data 1"
INDEX = "index.safetensors"  # in a folder that holds all of one set of training data
IMAGES, TEXTS = "images", "texts"


class Rows(NamedTuple):
    """Keys in a store: the rows of a table, in its order."""

    store: Store
    keys: NDArray[np.uint8]  # (N, KEY)

    def table(self) -> Table | None:
        """The table; None if a row is not in the store."""
        files, keys = self.store.read()
        places = keys.find(self.keys)
        return None if (places < 0).any() else Table(*_only_used(files, places))

    def awaited(self) -> Table:
        """The table, when all processes of the run have written their rows. Raises FewstepError if they do not come."""
        return awaited(self.table, self.store.folder, PATIENCE_S)


def _only_used(files: Sequence[Path], places: NDArray[np.int32]) -> tuple[list[Path], Tensor]:
    used, numbers = np.unique(places[:, 0], return_inverse=True)
    renumbered = np.stack([numbers.reshape(-1), places[:, 1]], 1).astype(np.int32)
    return [files[number] for number in used], torch.from_numpy(renumbered)


def write_index(path: Path, encoded: Encoded) -> None:
    """Write the index of what lies in these files. They are named relative to the index."""
    optional = {"first_captions": encoded.first_captions, "shape": encoded.shape}
    tensors = {IMAGES: encoded.images.places, TEXTS: encoded.texts.places}
    tensors |= {name: x for name, x in optional.items() if x is not None}
    files = {name: _listed(table, path.parent) for name, table in ((IMAGES, encoded.images), (TEXTS, encoded.texts))}
    metadata = {
        "format": FORMAT,
        "files": json.dumps(files),
        "views": str(encoded.views),
        "identity": encoded.identity,
        "facts": json.dumps(encoded.facts),
    }
    with atomic_path(path) as temporary:
        save_file({name: x.contiguous() for name, x in tensors.items()}, temporary, metadata)


def _listed(table: Table, folder: Path) -> list[tuple[str, int]]:
    """The files' names relative to the folder, and their sizes."""
    return [(os.path.relpath(file, folder), file.stat().st_size) for file in table.files]


def read_index(path: Path) -> Encoded | None:
    """The encoded data of an index; None if it is not there, is damaged, or one of its files is not as it was."""
    try:
        with safe_open(path, "pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        listed: dict[str, list[tuple[str, int]]] = json.loads(metadata["files"])
        if not all(whole(path.parent / name, size) for of_table in listed.values() for name, size in of_table):
            return None
        tables = {name: Table([path.parent / file for file, _ in listed[name]], tensors[name]) for name in listed}
        return Encoded(
            tables[IMAGES],
            tables[TEXTS],
            int(metadata["views"]),
            tensors.get("first_captions"),
            tensors.get("shape"),
            metadata["identity"],
            json.loads(metadata["facts"]),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
