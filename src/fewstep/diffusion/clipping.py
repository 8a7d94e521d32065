"""Estimates of x_0 that are cut to the range of the data."""

from dataclasses import dataclass

from torch import Tensor

from fewstep.diffusion.guidance import Denoiser
from fewstep.diffusion.schedule import NoiseLevel


@dataclass(frozen=True)
class ClippedDenoiser:
    """A denoiser whose estimates are cut to [-limit, limit] ("static thresholding", arXiv 2205.11487, section 2.3)."""

    denoise: Denoiser
    limit: float

    def __call__(self, x_t: Tensor, level: NoiseLevel) -> Tensor:
        """The estimate of x_0, of the shape of x_t (B, C, H, W)."""
        return self.denoise(x_t, level).clamp(-self.limit, self.limit)
