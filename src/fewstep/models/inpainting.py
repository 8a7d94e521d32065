"""The inputs of an inpainting network besides x: a mask, and the latents of the kept part."""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

WHOLE = 0.25  # share of training masks that cover the whole image, so that the network learns to draw without one


class Encoder(Protocol):
    """Turns images into latents."""

    @property
    def device(self) -> torch.device: ...

    def encode(self, pixels: Tensor) -> Tensor: ...


def mask_and_latents(model: Encoder, pixels: Tensor, masks: Tensor) -> Tensor:
    """Masks, then the latents of the images with the masked part grey, (B, 1 + C, h, w).

    pixels: (B, 3, H, W) in [-1, 1]. masks: (B, 1, H, W), at least 0.5 where the picture is drawn again.
    """
    latents = model.encode(pixels * (masks < 0.5)).to(model.device)
    small = F.interpolate((masks >= 0.5).float(), size=latents.shape[2:])
    return torch.cat([small.to(latents), latents], dim=1)


def training_mask(seed: int, size: int) -> Tensor:
    """A random mask (1, size, size) of 0 and 1: a rectangle of sides size / 4 to size, or all 1 (share WHOLE)."""
    generator = torch.Generator().manual_seed(seed)
    whole, width, height, x, y = torch.rand(5, generator=generator).tolist()
    if whole < WHOLE:
        return torch.ones(1, size, size)
    width, height = (max(round((0.25 + 0.75 * part) * size), 1) for part in (width, height))
    left, top = round(x * (size - width)), round(y * (size - height))
    mask = torch.zeros(1, size, size)
    mask[:, top : top + height, left : left + width] = 1
    return mask
