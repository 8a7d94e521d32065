"""The safety checker that some models bring: which pictures it would not show."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.images import to_image


@dataclass(frozen=True)
class SafetyChecker:
    """Stable Diffusion's own: CLIP's image embedding against those of concepts that it hides."""

    network: Any  # StableDiffusionSafetyChecker
    processor: Any  # CLIPImageProcessor

    @torch.no_grad()
    def hides(self, pixels: Tensor) -> bool:
        """Whether the picture (3, H, W) in [-1, 1] is one it would replace by black."""
        seen = self.processor(to_image(pixels.cpu()), return_tensors="pt").pixel_values.to(self.network.device)
        _, hidden = self.network(seen, torch.zeros(1, 1, device=seen.device))
        return bool(hidden[0])
