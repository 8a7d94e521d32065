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


def training_mask(seed: int, height: int, width: int) -> Tensor:
    """A random mask (1, height, width) of 0 and 1: a rectangle of a quarter to all of each side, or all 1 (WHOLE)."""
    generator = torch.Generator().manual_seed(seed)
    whole, w, h, x, y = torch.rand(5, generator=generator).tolist()
    if whole < WHOLE:
        return torch.ones(1, height, width)
    w, h = (max(round((0.25 + 0.75 * part) * side), 1) for part, side in ((w, width), (h, height)))
    left, top = round(x * (width - w)), round(y * (height - h))
    mask = torch.zeros(1, height, width)
    mask[:, top : top + h, left : left + w] = 1
    return mask
