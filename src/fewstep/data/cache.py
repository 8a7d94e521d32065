"""Latents and text embeddings of a data set: encoded once, kept on disk, keyed by content and model."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from fewstep.data.folder import Item
from fewstep.diffusion.guidance import Conditioning
from fewstep.images import read_image
from fewstep.io import atomic_path, cache_dir, sha256_bytes, sha256_file
from fewstep.models.load import Model

CHUNK = 256  # images per cache file: what an interrupted run can lose
BATCH = 8  # images encoded at once


class Encoded:
    """A data set's latents and text embeddings, read lazily from its cache files."""

    def __init__(self, paths: Sequence[Path], samples: int) -> None:
        self._files: list[Any] = [safe_open(path, "pt") for path in paths]
        self._samples = samples

    def __len__(self) -> int:
        return self._samples

    def latents(self, indices: Sequence[int]) -> Tensor:
        """x_0 (B, C, H, W) float32 of these samples."""
        return self._rows("latents", indices)

    def conditioning(self, indices: Sequence[int]) -> Conditioning:
        """Text embeddings (B, L, D) float32 of these samples' captions."""
        return Conditioning(self._rows("text", indices))

    def _rows(self, key: str, indices: Sequence[int]) -> Tensor:
        places = (divmod(index, CHUNK) for index in indices)
        return torch.cat([self._files[chunk].get_slice(key)[row : row + 1] for chunk, row in places]).float()


def encode(items: Sequence[Item], model: Model, size: int) -> Encoded:
    """The encoded data set of these images at `size` x `size` pixels, from the cache or through the model.

    A cache file holds CHUNK images; its name is the hash of the images' bytes, their captions, the size
    and the model's autoencoder and text encoder, so a change of any of them is encoded anew.
    """
    encoder = model.encoder_sha256()
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    paths = [cache_dir() / "encoded" / f"{chunk_key(chunk, encoder, size)}.safetensors" for chunk in chunks]
    with tqdm(total=len(items), unit="image", desc="encoding", file=sys.stderr, disable=_all_cached(paths)) as bar:
        for chunk, path in zip(chunks, paths, strict=True):
            if not _readable(path):
                _encode_chunk(chunk, path, model, size)
            bar.update(len(chunk))
    return Encoded(paths, len(items))


def chunk_key(chunk: Sequence[Item], encoder: str, size: int) -> str:
    """Hash of all that decides a cache file's content."""
    rows = [f"{sha256_file(item.path)} {item.caption}\0".encode() for item in chunk]
    return sha256_bytes(f"1 {encoder} {size} ".encode(), *rows)


def _all_cached(paths: Sequence[Path]) -> bool:
    return all(path.exists() for path in paths)


def _readable(path: Path) -> bool:
    try:
        with safe_open(path, "pt") as file:
            return {"latents", "text"} <= set(file.keys())
    except (OSError, SafetensorError):
        return False


def _encode_chunk(chunk: Sequence[Item], path: Path, model: Model, size: int) -> None:
    latents, text = [], []
    for start in range(0, len(chunk), BATCH):
        part = chunk[start : start + BATCH]
        latents.append(model.encode(torch.stack([read_image(item.path, size, size) for item in part])).cpu())
        text.append(model.embed([item.caption for item in part]).text.half().cpu())
    with atomic_path(path) as temporary:
        save_file({"latents": torch.cat(latents), "text": torch.cat(text)}, temporary)
