"""Stores: folders of safetensors files, each with rows of tensors under keys."""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewstep.data.framing import KEY
from fewstep.io import atomic_path, cache_dir, sha256_bytes

KEYS = "keys"  # of the rows, (rows, KEY) bytes
MOST_ROWS = 1024  # in a file
MOST_BYTES = 2**26  # in a file, nearly
LONGEST_S = 60.0  # seconds of work that an interrupted run loses at most, nearly

Places = NDArray[np.int32]  # (N, 2): the number of the file, the row in it; -1 for what is not there


class Keys:
    """Keys with the places of their rows, sorted, so that many are found at once in little memory."""

    def __init__(self, keys: NDArray[np.uint8], places: Places) -> None:
        """keys: (N, KEY). places: (N, 2)."""
        high, low = _halves(keys)
        order = np.lexsort((low, high))
        self._high, self._low, self._places = high[order], low[order], places[order]

    def __len__(self) -> int:
        return len(self._high)

    def __contains__(self, key: bytes) -> bool:
        return bool(self.find(as_array([key]))[0, 0] >= 0)

    def find(self, keys: NDArray[np.uint8]) -> Places:
        """The places (M, 2) of keys (M, KEY)."""
        high, low = _halves(keys)
        at = np.searchsorted(self._high, high)
        found = np.full((len(keys), 2), -1, np.int32)
        while True:  # a second time only where two keys begin alike
            inside = at < len(self)
            inside[inside] = self._high[at[inside]] == high[inside]
            if not inside.any():
                return found
            same = inside.copy()
            same[inside] = self._low[at[inside]] == low[inside]
            found[same] = self._places[at[same]]
            at = np.where(same, len(self), at + 1)


def _halves(keys: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    halves = np.ascontiguousarray(keys).view(np.uint64).reshape(-1, 2)
    return halves[:, 0], halves[:, 1]


def encoded_folder() -> Path:
    """Where encoded data of all runs is."""
    return cache_dir() / "encoded"


def key_of(*parts: str | bytes) -> bytes:
    """A hash of KEY bytes of these, each with its length."""
    digest = blake2b(digest_size=KEY)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


def as_array(keys: Sequence[bytes]) -> NDArray[np.uint8]:
    """The keys as (N, KEY) bytes."""
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY)


class Store:
    """The rows of one kind, such as all latents of one autoencoder. Files are added and never changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self) -> tuple[list[Path], Keys]:
        """The files, and the places of all keys in them. Files that cannot be read are removed."""
        files, keys = [], []
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(path, "np") as file:
                    keys.append(file.get_tensor(KEYS))
                files.append(path)
            except (OSError, SafetensorError):
                with suppress(OSError):
                    path.unlink()
        if not keys:
            return [], Keys(as_array([]), np.zeros((0, 2), np.int32))
        numbers = np.repeat(np.arange(len(keys), dtype=np.int32), [len(part) for part in keys])
        rows = np.concatenate([np.arange(len(part), dtype=np.int32) for part in keys])
        return files, Keys(np.concatenate(keys), np.stack([numbers, rows], 1))

    def touch(self) -> None:
        """Let doctor's --prune know that it was needed now."""
        with suppress(OSError):  # a cache that is only read
            os.utime(self.folder)


class Writer:
    """Adds rows to a store. A file is written when enough rows are together, or after a minute."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._keys: list[bytes] = []
        self._rows: list[Mapping[str, Tensor]] = []
        self._begun = 0.0

    def add(self, keys: Sequence[bytes], rows: Mapping[str, Tensor]) -> None:
        """Add these rows, whose tensors have the shapes of those before. They are not in files until `flush`."""
        if not self._keys:
            self._begun = time.monotonic()
        self._keys += keys
        self._rows.append(rows)
        row_bytes = sum(x[0].nbytes for x in rows.values())
        if (
            len(self._keys) >= min(MOST_ROWS, MOST_BYTES / max(row_bytes, 1))
            or time.monotonic() - self._begun > LONGEST_S
        ):
            self.flush()

    def flush(self) -> None:
        """Write what is there to a file."""
        if not self._keys:
            return
        tensors = {name: torch.cat([part[name] for part in self._rows]).contiguous() for name in self._rows[0]}
        tensors[KEYS] = torch.from_numpy(as_array(self._keys).copy())
        with atomic_path(self.store.folder / f"{sha256_bytes(*self._keys)[:32]}.safetensors") as temporary:
            save_file(tensors, temporary)
        self._keys, self._rows = [], []


def whole(path: Path, size: int) -> bool:
    """Whether there is a file of this size."""
    try:
        return os.stat(path).st_size == size  # noqa: PTH116
    except OSError:
        return False


def opened(path: Path) -> Any:
    """The file, to read slices of its tensors."""
    return safe_open(path, "pt")
