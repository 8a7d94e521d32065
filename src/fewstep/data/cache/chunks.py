"""Cache files of a number of pictures each, which are named after all that these depend on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewstep.data.cache.batches import BATCH
from fewstep.data.cache.encoded import VALUES
from fewstep.io import atomic_path, cache_dir, sha256_bytes
from fewstep.models.model import Model

T = TypeVar("T")


def chunks_of(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """The items in parts of `size`; the last may have fewer."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def text_files(chunks: Sequence[Sequence[str]], model: Model) -> list[Path]:
    """The cache file for the embeddings of each chunk of captions."""
    of_text = f"3 text {model.text_sha256()} "
    return [cache_file(of_text, [f"{caption}\0" for caption in chunk]) for chunk in chunks]


def cache_file(kind: str, parts: Sequence[str]) -> Path:
    """The cache file named after the hash of these words. kind: begins them; it has a number of its own version."""
    return cache_dir() / "encoded" / f"{sha256_bytes(kind.encode(), *(part.encode() for part in parts))}.safetensors"


def is_filled(path: Path) -> bool:
    """Whether a readable file of the cache is there."""
    try:
        with safe_open(path, "pt") as file:
            return VALUES in file.keys()  # noqa: SIM118
    except (OSError, SafetensorError):
        return False


def fill(
    path: Path, chunk: Sequence[T], encoded: Callable[[Sequence[T]], dict[str, Tensor]], at_once: int = BATCH
) -> None:
    """Write the encoded chunk to `path`, unless a readable file is there. at_once: the most that `encoded` is given."""
    if is_filled(path):
        return
    parts = [encoded(part) for part in chunks_of(chunk, at_once)]
    with atomic_path(path) as temporary:
        save_file({name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}, temporary)
