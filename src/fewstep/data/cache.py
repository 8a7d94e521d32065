"""The latents and text embeddings of training data. They are made once and kept in files, by content and model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

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

T = TypeVar("T")
CHUNK = 256  # samples in a cache file; an interrupted run loses at most these
BATCH = 8  # samples encoded at once
# The names of tensors in a cache file:
VALUES = "values"  # the latents, or the embeddings
POOLED, SIZES = "pooled", "sizes"  # the inputs that only SDXL has: pooled embeddings; image sizes and cuts
INPAINTING = "beside"  # the input that only inpainting networks have: a mask, and the latents of what it keeps


class Encoded:
    """The latents and text embeddings of training data, read from its cache files when they are asked for."""

    def __init__(self, latents: Sequence[Path], text: Sequence[Path], samples: int, chunk: int) -> None:
        """samples: how many there are in all. chunk: how many each file has, but for the last."""
        self._latents, self._text = ([safe_open(path, "pt") for path in paths] for paths in (latents, text))
        self._samples, self._chunk = samples, chunk
        self._sdxl = POOLED in set(self._text[0].keys())  # type: ignore[no-untyped-call]
        self._inpainting = INPAINTING in set(self._latents[0].keys())  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return self._samples

    def latents(self, indices: Sequence[int]) -> Tensor:
        """x_0 (B, C, H, W) float32 of these samples."""
        return self._rows(self._latents, indices)

    def conditioning(self, indices: Sequence[int]) -> Conditioning:
        """The conditioning of these samples, in float32: their captions, and for SDXL their images' sizes and cuts."""
        text = self._rows(self._text, indices)
        conditioning = Conditioning(
            text, mask_and_latents=self._rows(self._latents, indices, INPAINTING) if self._inpainting else None
        )
        if not self._sdxl:
            return conditioning
        return conditioning._replace(
            pooled=self._rows(self._text, indices, POOLED), sizes=self._rows(self._latents, indices, SIZES)
        )

    def _rows(self, files: Sequence[Any], indices: Sequence[int], tensor: str = VALUES) -> Tensor:
        places = (divmod(index, self._chunk) for index in indices)
        return torch.cat([files[chunk].get_slice(tensor)[row : row + 1] for chunk, row in places]).float()


def encode(samples: Sequence[Sample], model: Model, size: int) -> Encoded:
    """The latents and text embeddings of these samples at `size` x `size` pixels, from the cache or through the model.

    A cache file holds the latents, or the embeddings, of CHUNK samples. Its name is a hash. Of latents it is the hash
    of the images' bytes, the size and the autoencoder's encoder; of embeddings, of the captions and the text encoders.
    So new captions or a new text encoder leave the latents as they are. Of several captions the first is encoded.
    Raises FewstepError naming an image that cannot be read by its key.
    """
    chunks = chunks_of(samples, CHUNK)
    kind = "masked latents" if model.inpaints else "latents"
    of_images = f"4 {kind} {encoder_sha256(model.vae)} {size} "
    with doing("hashing the images"):
        latents = [cache_file(of_images, [sha256_bytes(sample.open()) for sample in chunk]) for chunk in chunks]
    captions = [captions_of(chunk) for chunk in chunks]
    text = text_files(captions, model)
    cached = all(path.exists() for path in (*latents, *text))
    for number, (chunk, file, words, text_file) in enumerate(zip(chunks, latents, captions, text, strict=True)):
        if not cached:
            tell(Progress("encoding", number * CHUNK, len(samples), "image"))
        fill(file, chunk, lambda part: _encoded_images(part, model, size))
        fill(text_file, words, lambda part: encoded_captions(part, model))
    if not cached:
        tell(Progress("encoding", len(samples), len(samples), "image"))
    return Encoded(latents, text, len(samples), CHUNK)


def chunks_of(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """The items in parts of `size`; the last may have fewer."""
    return [items[start : start + size] for start in range(0, len(items), size)]


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


def encoded_captions(captions: Sequence[str], model: Model) -> dict[str, Tensor]:
    """The embeddings of the captions, in half precision."""
    conditioning = model.embed(captions)
    pooled = {} if conditioning.pooled is None else {POOLED: conditioning.pooled.half()}
    return {VALUES: conditioning.text.half()} | pooled


def captions_of(samples: Sequence[Sample]) -> list[str]:
    """The first caption of each sample; "" for an image without one, which a model without text learns from."""
    return [sample.captions[0] if sample.captions else "" for sample in samples]


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
