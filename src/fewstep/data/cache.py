"""The latents and text embeddings of a source. They are encoded once and kept in files, by content and model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewstep.data.sources import Sample
from fewstep.diffusion.guidance import Conditioning
from fewstep.events import Progress, doing, tell
from fewstep.images import PictureFile, image_size, placed, read_image
from fewstep.io import atomic_path, cache_dir, sha256_bytes
from fewstep.models.inpainting import mask_and_latents, training_mask
from fewstep.models.model import Model, encoder_sha256

CHUNK = 256  # samples in a cache file; an interrupted run loses at most these
BATCH = 8  # samples encoded at once
# The names of tensors in a cache file:
VALUES = "values"  # the latents, or the embeddings
POOLED, SIZES = "pooled", "sizes"  # the inputs that only SDXL has: pooled embeddings; image sizes and cuts
INPAINTING = "beside"  # the input that only inpainting networks have: a mask, and the latents of what it keeps


class Encoded:
    """The latents and text embeddings of a source, read from its cache files when they are asked for."""

    def __init__(self, latents: Sequence[Path], text: Sequence[Path], samples: int) -> None:
        self._latents, self._text = ([safe_open(path, "pt") for path in paths] for paths in (latents, text))
        self._samples = samples
        self._sdxl = POOLED in set(self._text[0].keys())  # type: ignore[no-untyped-call]
        self._inpainting = INPAINTING in set(self._latents[0].keys())  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return self._samples

    def latents(self, indices: Sequence[int]) -> Tensor:
        """x_0 (B, C, H, W) float32 of these samples."""
        return _rows(self._latents, indices)

    def conditioning(self, indices: Sequence[int]) -> Conditioning:
        """The conditioning of these samples, in float32: their captions, and for SDXL their images' sizes and cuts."""
        text = _rows(self._text, indices)
        conditioning = Conditioning(
            text, mask_and_latents=_rows(self._latents, indices, INPAINTING) if self._inpainting else None
        )
        if not self._sdxl:
            return conditioning
        return conditioning._replace(
            pooled=_rows(self._text, indices, POOLED), sizes=_rows(self._latents, indices, SIZES)
        )


def _rows(files: Sequence[Any], indices: Sequence[int], tensor: str = VALUES) -> Tensor:
    places = (divmod(index, CHUNK) for index in indices)
    return torch.cat([files[chunk].get_slice(tensor)[row : row + 1] for chunk, row in places]).float()


def encode(samples: Sequence[Sample], model: Model, size: int) -> Encoded:
    """The latents and text embeddings of these samples at `size` x `size` pixels, from the cache or through the model.

    A cache file holds the latents, or the embeddings, of CHUNK samples. Its name is a hash. Of latents it is the hash
    of the images' bytes, the size and the autoencoder's encoder; of embeddings, of the captions and the text encoders.
    So new captions or a new text encoder leave the latents as they are. Of several captions the first is encoded.
    Raises FewstepError naming an image that cannot be read by its key.
    """
    chunks = [samples[start : start + CHUNK] for start in range(0, len(samples), CHUNK)]
    kind = "masked latents" if model.inpaints else "latents"
    of_images, of_text = f"4 {kind} {encoder_sha256(model.vae)} {size} ", f"3 text {model.text_sha256()} "
    with doing("hashing the images"):
        latents = [_path(of_images, [sha256_bytes(sample.open()) for sample in chunk]) for chunk in chunks]
    text = [_path(of_text, [f"{sample.captions[0]}\0" for sample in chunk]) for chunk in chunks]
    cached = all(path.exists() for path in (*latents, *text))
    for number, (chunk, of_chunk, text_of_chunk) in enumerate(zip(chunks, latents, text, strict=True)):
        if not cached:
            tell(Progress("encoding", number * CHUNK, len(samples), "image"))
        _fill(of_chunk, chunk, lambda part: _encoded_images(part, model, size))
        _fill(text_of_chunk, chunk, lambda part: _encoded_captions(part, model))
    if not cached:
        tell(Progress("encoding", len(samples), len(samples), "image"))
    return Encoded(latents, text, len(samples))


def _encoded_images(samples: Sequence[Sample], model: Model, size: int) -> dict[str, Tensor]:
    """The images' latents, and for SDXL the height and width of each image, its cut and the training size.

    For an inpainting network also masks and the latents of what they keep. A mask depends on the image's bytes alone.
    """
    files = [sample.open() for sample in samples]
    pixels = [read_image(file, size, size, sample.key) for file, sample in zip(files, samples, strict=True)]
    sizes = [_sizes(file, size, sample.size) for file, sample in zip(files, samples, strict=True)]
    encoded = {VALUES: model.encode(torch.stack(pixels)), SIZES: torch.tensor(sizes, dtype=torch.float32)}
    if model.inpaints:
        masks = [training_mask(int(sha256_bytes(file)[:15], 16), size) for file in files]
        encoded[INPAINTING] = mask_and_latents(model, torch.stack(pixels), torch.stack(masks))
    return encoded


def _sizes(picture: PictureFile, size: int, known: tuple[int, int] | None = None) -> tuple[int, ...]:
    """Height, width, top and left of the cut, training height and width.

    known: the picture's height and width; None to read them.
    """
    height, width = known or image_size(picture)[::-1]
    _, left, top = placed((width, height), size, size)
    return height, width, top, left, size, size


def _encoded_captions(samples: Sequence[Sample], model: Model) -> dict[str, Tensor]:
    """The embeddings of the captions, in half precision."""
    conditioning = model.embed([sample.captions[0] for sample in samples])
    pooled = {} if conditioning.pooled is None else {POOLED: conditioning.pooled.half()}
    return {VALUES: conditioning.text.half()} | pooled


def _path(kind: str, parts: Sequence[str]) -> Path:
    return cache_dir() / "encoded" / f"{sha256_bytes(kind.encode(), *(part.encode() for part in parts))}.safetensors"


def _fill(path: Path, chunk: Sequence[Sample], encoded: Callable[[Sequence[Sample]], dict[str, Tensor]]) -> None:
    """Write the encoded chunk to `path`, unless a readable file is there."""
    try:
        with safe_open(path, "pt") as file:
            if VALUES in file.keys():  # noqa: SIM118
                return
    except (OSError, SafetensorError):
        pass
    parts = [encoded(chunk[start : start + BATCH]) for start in range(0, len(chunk), BATCH)]
    with atomic_path(path) as temporary:
        save_file({name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}, temporary)
