"""What an inpainting network gets beside x: a mask, and the latents of what is kept."""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

WHOLE = 0.25  # share of training masks that cover everything, so that the network draws without an image too


class Encoder(Protocol):
    """What turns images into latents."""

    @property
    def device(self) -> torch.device: ...

    def encode(self, pixels: Tensor) -> Tensor: ...


def mask_and_latents(model: Encoder, pixels: Tensor, masks: Tensor) -> Tensor:
    """Masks and the latents of the images with grey under them, (B, 1 + C, h, w).

    pixels: (B, 3, H, W) in [-1, 1]. masks: (B, 1, H, W), at least 0.5 where something is drawn anew.
    """
    latents = model.encode(pixels * (masks < 0.5)).to(model.device)
    small = F.interpolate((masks >= 0.5).float(), size=latents.shape[2:])
    return torch.cat([small.to(latents), latents], dim=1)


def training_mask(seed: int, size: int) -> Tensor:
    """A rectangle somewhere, a quarter to all of each side, or WHOLE of the times all: (1, size, size) of 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    whole, width, height, x, y = torch.rand(5, generator=generator).tolist()
    if whole < WHOLE:
        return torch.ones(1, size, size)
    width, height = (max(round((0.25 + 0.75 * part) * size), 1) for part in (width, height))
    left, top = round(x * (size - width)), round(y * (size - height))
    mask = torch.zeros(1, size, size)
    mask[:, top : top + height, left : left + width] = 1
    return mask
