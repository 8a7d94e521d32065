"""Latents and text embeddings of a data set: encoded once, kept on disk, keyed by content and model."""

import sys
from collections.abc import Callable, Sequence
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
from fewstep.models.load import Model, encoder_sha256

CHUNK = 256  # samples per cache file: what an interrupted run can lose
BATCH = 8  # samples encoded at once
KEY = "values"  # of the one tensor in a cache file


class Encoded:
    """A data set's latents and text embeddings, read lazily from its cache files."""

    def __init__(self, latents: Sequence[Path], text: Sequence[Path], samples: int) -> None:
        self._latents, self._text = ([safe_open(path, "pt") for path in paths] for paths in (latents, text))
        self._samples = samples

    def __len__(self) -> int:
        return self._samples

    def latents(self, indices: Sequence[int]) -> Tensor:
        """x_0 (B, C, H, W) float32 of these samples."""
        return _rows(self._latents, indices)

    def conditioning(self, indices: Sequence[int]) -> Conditioning:
        """Text embeddings (B, L, D) float32 of these samples' captions."""
        return Conditioning(_rows(self._text, indices))


def _rows(files: Sequence[Any], indices: Sequence[int]) -> Tensor:
    places = (divmod(index, CHUNK) for index in indices)
    return torch.cat([files[chunk].get_slice(KEY)[row : row + 1] for chunk, row in places]).float()


def encode(items: Sequence[Item], model: Model, size: int) -> Encoded:
    """The encoded data set of these images at `size` x `size` pixels, from the cache or through the model.

    A cache file holds the latents, or the embeddings, of CHUNK samples. Its name is the hash of what decides them:
    the images' bytes, the size and the autoencoder's encoder, or the captions and the text encoder. So new captions
    or a new text encoder leave the latents as they are.
    """
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    of_images, of_text = f"2 latents {encoder_sha256(model.vae)} {size} ", f"2 text {model.text_sha256()} "
    latents = [_path(of_images, [sha256_file(item.path) for item in chunk]) for chunk in chunks]
    text = [_path(of_text, [f"{item.caption}\0" for item in chunk]) for chunk in chunks]
    done = all(path.exists() for path in (*latents, *text))
    with tqdm(total=len(items), unit="image", desc="encoding", file=sys.stderr, disable=done) as bar:
        for chunk, of_chunk, words in zip(chunks, latents, text, strict=True):
            _fill(of_chunk, chunk, lambda part: model.encode(torch.stack([_read(item, size) for item in part])))
            _fill(words, chunk, lambda part: model.embed([item.caption for item in part]).text.half())
            bar.update(len(chunk))
    return Encoded(latents, text, len(items))


def _path(kind: str, parts: Sequence[str]) -> Path:
    return cache_dir() / "encoded" / f"{sha256_bytes(kind.encode(), *(part.encode() for part in parts))}.safetensors"


def _read(item: Item, size: int) -> Tensor:
    return read_image(item.path, size, size)


def _fill(path: Path, chunk: Sequence[Item], encoded: Callable[[Sequence[Item]], Tensor]) -> None:
    """Write the encoded chunk to `path`, unless it is there and readable."""
    try:
        with safe_open(path, "pt") as file:
            if KEY in file.keys():  # noqa: SIM118
                return
    except (OSError, SafetensorError):
        pass
    parts = [encoded(chunk[start : start + BATCH]).cpu() for start in range(0, len(chunk), BATCH)]
    with atomic_path(path) as temporary:
        save_file({KEY: torch.cat(parts)}, temporary)
