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
from fewstep.events import doing
from fewstep.images import image_size, placed, read_image
from fewstep.io import atomic_path, cache_dir, sha256_bytes, sha256_file
from fewstep.models.inpainting import beside, training_mask
from fewstep.models.model import Model, encoder_sha256

CHUNK = 256  # samples per cache file: what an interrupted run can lose
BATCH = 8  # samples encoded at once
KEY = "values"  # the latents, or the embeddings, in a cache file
POOLED, SIZES = "pooled", "sizes"  # what SDXL is told besides
BESIDE = "beside"  # what an inpainting network is


class Encoded:
    """A data set's latents and text embeddings, read lazily from its cache files."""

    def __init__(self, latents: Sequence[Path], text: Sequence[Path], samples: int) -> None:
        self._latents, self._text = ([safe_open(path, "pt") for path in paths] for paths in (latents, text))
        self._samples = samples
        self._sdxl = POOLED in set(self._text[0].keys())  # type: ignore[no-untyped-call]
        self._inpainting = BESIDE in set(self._latents[0].keys())  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return self._samples

    def latents(self, indices: Sequence[int]) -> Tensor:
        """x_0 (B, C, H, W) float32 of these samples."""
        return _rows(self._latents, indices)

    def conditioning(self, indices: Sequence[int]) -> Conditioning:
        """What these samples' captions, and for SDXL their images' sizes and cuts, tell the network, in float32."""
        text = _rows(self._text, indices)
        told = Conditioning(text, beside=_rows(self._latents, indices, BESIDE) if self._inpainting else None)
        if not self._sdxl:
            return told
        return told._replace(pooled=_rows(self._text, indices, POOLED), sizes=_rows(self._latents, indices, SIZES))


def _rows(files: Sequence[Any], indices: Sequence[int], key: str = KEY) -> Tensor:
    places = (divmod(index, CHUNK) for index in indices)
    return torch.cat([files[chunk].get_slice(key)[row : row + 1] for chunk, row in places]).float()


def encode(items: Sequence[Item], model: Model, size: int) -> Encoded:
    """The encoded data set of these images at `size` x `size` pixels, from the cache or through the model.

    A cache file holds the latents, or the embeddings, of CHUNK samples. Its name is the hash of what decides them:
    the images' bytes, the size and the autoencoder's encoder, or the captions and the text encoders. So new captions
    or a new text encoder leave the latents as they are.
    """
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    kind = "masked latents" if model.inpaints else "latents"
    of_images, of_text = f"4 {kind} {encoder_sha256(model.vae)} {size} ", f"3 text {model.text_sha256()} "
    with doing("hashing the images"):
        latents = [_path(of_images, [sha256_file(item.path) for item in chunk]) for chunk in chunks]
    text = [_path(of_text, [f"{item.caption}\0" for item in chunk]) for chunk in chunks]
    done = all(path.exists() for path in (*latents, *text))
    with tqdm(total=len(items), unit="image", desc="encoding", file=sys.stderr, disable=done) as bar:
        for chunk, of_chunk, words in zip(chunks, latents, text, strict=True):
            _fill(of_chunk, chunk, lambda part: _seen(part, model, size))
            _fill(words, chunk, lambda part: _said(part, model))
            bar.update(len(chunk))
    return Encoded(latents, text, len(items))


def _seen(items: Sequence[Item], model: Model, size: int) -> dict[str, Tensor]:
    """The images' latents, and what SDXL is told of each: its own height and width, the cut, the training size.

    For an inpainting network also a mask, which depends on the image's bytes alone, and what is kept.
    """
    pixels = torch.stack([read_image(item.path, size, size) for item in items])
    sizes = torch.tensor([_sizes(item.path, size) for item in items], dtype=torch.float32)
    seen = {KEY: model.encode(pixels), SIZES: sizes}
    if model.inpaints:
        masks = [training_mask(int(sha256_file(item.path)[:15], 16), size) for item in items]
        seen[BESIDE] = beside(model, pixels, torch.stack(masks))
    return seen


def _sizes(path: Path, size: int) -> tuple[int, ...]:
    width, height = image_size(path)
    _, left, top = placed((width, height), size, size)
    return height, width, top, left, size, size


def _said(items: Sequence[Item], model: Model) -> dict[str, Tensor]:
    """The captions' embeddings, in half precision."""
    told = model.embed([item.caption for item in items])
    return {KEY: told.text.half()} | ({} if told.pooled is None else {POOLED: told.pooled.half()})


def _path(kind: str, parts: Sequence[str]) -> Path:
    return cache_dir() / "encoded" / f"{sha256_bytes(kind.encode(), *(part.encode() for part in parts))}.safetensors"


def _fill(path: Path, chunk: Sequence[Item], encoded: Callable[[Sequence[Item]], dict[str, Tensor]]) -> None:
    """Write the encoded chunk to `path`, unless it is there and readable."""
    try:
        with safe_open(path, "pt") as file:
            if KEY in file.keys():  # noqa: SIM118
                return
    except (OSError, SafetensorError):
        pass
    parts = [encoded(chunk[start : start + BATCH]) for start in range(0, len(chunk), BATCH)]
    with atomic_path(path) as temporary:
        save_file({key: torch.cat([part[key].cpu() for part in parts]) for key in parts[0]}, temporary)
