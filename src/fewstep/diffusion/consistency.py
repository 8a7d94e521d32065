"""The consistency function and its boundary scalings."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.diffusion.guidance import Denoiser
from fewstep.diffusion.schedule import NoiseLevel

SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0


def boundary_scalings(
    t: Tensor, sigma_data: float = SIGMA_DATA, timestep_scaling: float = TIMESTEP_SCALING
) -> tuple[Tensor, Tensor]:
    """c_skip and c_out at timesteps t, of t's shape, with c_skip(0) = 1 and c_out(0) = 0.

    Source: LCM, arXiv 2310.04378, section 4.1, and its published code.
    c_out has no sigma_data factor because the inner estimate is already x_0 (trap 3).
    """
    scaled = t * timestep_scaling
    # number / tensor is number * (1 / tensor) in torch, so sigma_data**2 / (...) need not be exactly 1 at t = 0.
    return 1 / (1 + (scaled / sigma_data) ** 2), scaled / torch.sqrt(scaled**2 + sigma_data**2)


def consistency(denoise: Denoiser, x_s: Tensor, s: NoiseLevel) -> Tensor:
    """f(x_s, s) = c_skip x_s + c_out x_0(x_s, s): the clean end of the ODE through x_s, (B, C, H, W) (LCM, eq. 9)."""
    c_skip, c_out = boundary_scalings(s.t.view(-1, 1, 1, 1))
    return c_skip * x_s + c_out * denoise(x_s, s)


@dataclass(frozen=True)
class ConsistencyDenoiser:
    """A denoiser that returns another one's consistency function f(x_s, s). LCM's sampler steps with it."""

    denoise: Denoiser

    def __call__(self, x_t: Tensor, level: NoiseLevel) -> Tensor:
        return consistency(self.denoise, x_t, level)
