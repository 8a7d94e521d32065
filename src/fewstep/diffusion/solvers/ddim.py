"""DDIM (arXiv 2010.02502), deterministic."""

from typing import ClassVar, final

from torch import Tensor

from fewstep.diffusion.guidance import Denoiser
from fewstep.diffusion.prediction import eps_from_x_0
from fewstep.diffusion.solvers.base import EndsOnly, Levels, Noise, State


@final
class DDIM(EndsOnly):
    """DDIM: first order, one network call a step; also DPM-Solver-1 and DPM-Solver++(1) (eq. 12, eta = 0)."""

    calls: ClassVar[int] = 1
    order: ClassVar[int] = 1
    multistep: ClassVar[bool] = False

    def step(
        self, denoise: Denoiser, x_s: Tensor, levels: Levels, state: State, noise: Noise | None
    ) -> tuple[Tensor, State]:
        """x_t = alpha_t x_0 + sigma_t eps, both taken from x_s (B, C, H, W)."""
        s, t = levels
        x_0 = denoise(x_s, s)
        return t.alpha * x_0 + t.sigma * eps_from_x_0(x_0, x_s, s), None
