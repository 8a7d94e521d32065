"""Diversity: how different the images of one prompt are. It is low when a few-step model has collapsed."""

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.errors import FewstepError

PairDistance = Callable[[Tensor, Tensor], Tensor]  # images (B, 3, H, W) twice -> (B,)


@torch.no_grad()
def diversity(images: Tensor, distance: PairDistance, pairs_at_once: int = 32) -> float:
    """The mean distance over all K (K - 1) / 2 pairs of one prompt's K images; 0 if all are equal.

    images: (K, 3, H, W) pixels in [-1, 1], from different seeds. distance: `load_lpips()`.
    """
    if len(images) < 2:
        raise FewstepError(f"diversity needs at least 2 images of a prompt, not {len(images)}", "sample more images")
    first, second = torch.triu_indices(len(images), len(images), offset=1, device=images.device)
    pairs = zip(first.split(pairs_at_once), second.split(pairs_at_once), strict=True)
    return float(torch.cat([distance(images[i], images[j]) for i, j in pairs]).double().mean())
