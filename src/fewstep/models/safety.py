"""The safety checker that some models bring, which decides which pictures to hide."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.images import to_image


@dataclass(frozen=True)
class SafetyChecker:
    """Stable Diffusion's safety checker: it compares CLIP's image embedding with those of unwanted concepts."""

    network: Any  # StableDiffusionSafetyChecker
    processor: Any  # CLIPImageProcessor

    @torch.no_grad()
    def hides(self, pixels: Tensor) -> bool:
        """Whether the checker would replace the picture, (3, H, W) in [-1, 1], by black."""
        seen = self.processor(to_image(pixels.cpu()), return_tensors="pt").pixel_values.to(self.network.device)
        _, hidden = self.network(seen, torch.zeros(1, 1, device=seen.device))
        return bool(hidden[0])
