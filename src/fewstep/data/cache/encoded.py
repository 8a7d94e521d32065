"""The latents and text embeddings of training data, read from the cache's files when they are asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.data.cache.store import opened
from fewstep.diffusion.guidance import Conditioning

OPEN = 256  # files of a table that are open at once
# The names of tensors in a cache file:
VALUES = "values"  # the latents, or the embeddings
DEVIATIONS = "deviations"  # of the latents from their means, where they are kept
POOLED, SIZES = "pooled", "sizes"  # the inputs that only SDXL has: pooled embeddings; image sizes and cuts
INPAINTING = "beside"  # the input that only inpainting networks have: a mask, and the latents of what it keeps


@dataclass(frozen=True)
class Table:
    """Rows of tensors that lie in several files."""

    files: Sequence[Path]
    places: Tensor  # (N, 2) integers: the number of the row's file, and the row in it

    @cached_property
    def _opened(self) -> Any:
        return lru_cache(OPEN)(opened)

    def has(self, tensor: str) -> bool:
        """Whether the files have this tensor."""
        return tensor in set(self._opened(self.files[int(self.places[0, 0])]).keys())

    def rows(self, indices: Sequence[int], tensor: str = VALUES) -> Tensor:
        """These rows (B, ...) of a tensor, float32."""
        parts = []
        for file, row in self.places[list(indices)].tolist():
            parts.append(self._opened(self.files[file]).get_slice(tensor)[row : row + 1])
        return torch.cat(parts).float()


@dataclass(frozen=True)
class Encoded:
    """The latents and text embeddings of training data.

    Each sample has several views, such as a mirrored one, and one caption or more.
    """

    images: Table  # the views of the first sample, of the second, ...
    texts: Table  # the captions of the first sample, of the second, ...
    views: int = 1  # of each sample
    first_captions: Tensor | None = None  # (N + 1,) where each sample's captions begin in `texts`; None = one each
    shape: Tensor | None = None  # (N,) the number of each sample's shape; None = all have one shape
    identity: str = ""  # a hash of what the samples are, and of their order
    facts: dict[str, str] = field(default_factory=dict)  # what it was made of and by, in words

    def __len__(self) -> int:
        return len(self.images.places) // self.views

    @cached_property
    def groups(self) -> list[Tensor]:
        """The samples of each shape."""
        if self.shape is None:
            return [torch.arange(len(self))]
        numbers = sorted(set(self.shape.tolist()))
        return [torch.nonzero(self.shape == number).flatten() for number in numbers]

    def captions(self, index: int) -> int:
        """How many captions a sample has."""
        return 1 if self.first_captions is None else int(self.first_captions[index + 1] - self.first_captions[index])

    def latents(self, indices: Sequence[int], views: Sequence[int] | None = None) -> Tensor:
        """x_0 (B, C, H, W) float32 of these samples, which have one shape. views: of each; None = its first."""
        return self.images.rows(self._views(indices, views))

    def deviations(self, indices: Sequence[int], views: Sequence[int] | None = None) -> Tensor | None:
        """The standard deviations (B, C, H, W) of the latents, where they are kept."""
        return self.images.rows(self._views(indices, views), DEVIATIONS) if self._kept[DEVIATIONS] else None

    def conditioning(
        self, indices: Sequence[int], views: Sequence[int] | None = None, captions: Sequence[int] | None = None
    ) -> Conditioning:
        """The conditioning of these samples, in float32: their captions, and for SDXL their images' sizes and cuts.

        views, captions: of each sample; None = its first.
        """
        first = indices if self.first_captions is None else self.first_captions[list(indices)].tolist()
        texts = first if captions is None else [a + b for a, b in zip(first, captions, strict=True)]
        images = self._views(indices, views)
        return Conditioning(
            self.texts.rows(texts),
            pooled=self.texts.rows(texts, POOLED) if self._kept[POOLED] else None,
            sizes=self.images.rows(images, SIZES) if self._kept[POOLED] else None,
            mask_and_latents=self.images.rows(images, INPAINTING) if self._kept[INPAINTING] else None,
        )

    def _views(self, indices: Sequence[int], views: Sequence[int] | None) -> list[int]:
        return [index * self.views + (views[place] if views else 0) for place, index in enumerate(indices)]

    @cached_property
    def _kept(self) -> dict[str, bool]:
        tables = {DEVIATIONS: self.images, INPAINTING: self.images, POOLED: self.texts}
        return {tensor: table.has(tensor) for tensor, table in tables.items()}
