"""DDIM (arXiv 2010.02502), deterministic or with fresh noise."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from fewstep.diffusion.guidance import Denoiser
from fewstep.diffusion.prediction import eps_from_x_0
from fewstep.diffusion.schedule import NoiseLevel
from fewstep.diffusion.solvers.base import Ask, EndsOnly, Levels, Noise, Solver, State, Step, draw, run_step


def jump_to(end: NoiseLevel) -> Callable[[Denoiser, Tensor, NoiseLevel], Tensor]:
    """DDIM's step from any noisier level to `end`: TCD's first-order TCF in eps (arXiv 2402.19159, section 4.1).

    A step of no length returns x itself, which is the boundary condition. end: one level per sample.
    """

    def jump(denoise: Denoiser, x_s: Tensor, s: NoiseLevel) -> Tensor:
        x_t, _ = run_step(DDIM().step(x_s, (s, end), None, None), denoise)
        return torch.where(s.sigma == end.sigma, x_s, x_t)

    return jump


@final
@dataclass(frozen=True)
class DDIM(EndsOnly):
    """DDIM: first order, one network call a step. It equals DPM-Solver-1 and DPM-Solver++(1) (eq. 12, eta = 0).

    It also equals Euler's step of x / alpha in sigma / alpha (arXiv 2206.00364). At eta = 1, which is DDPM, it equals
    k-diffusion's ancestral Euler step. Tests hold both equalities.

    eta: 0 is deterministic; 1 adds as much fresh noise as DDPM (eq. 16).
    """

    eta: float = 0.0
    calls: ClassVar[int] = 1

    @property
    def order(self) -> int:
        """1 without fresh noise, 0 with it."""
        return 1 if self.eta == 0 else 0

    def step(self, x_s: Tensor, levels: Levels, state: State, noise: Noise | None) -> Step:
        """x_t = alpha_t x_0 + sigma_t eps, both estimated at x_s (B, C, H, W). With eta > 0, eps is partly fresh."""
        s, t = levels
        x_0 = yield Ask(x_s, s)
        eps = eps_from_x_0(x_0, x_s, s)
        if self.eta == 0 or not bool((t.sigma > 0).any()):
            return t.alpha * x_0 + t.sigma * eps, None
        fresh = self.eta * t.sigma / s.sigma * (1 - (s.alpha / t.alpha) ** 2).sqrt()
        kept = (t.sigma**2 - fresh**2).clamp(min=0).sqrt()
        return t.alpha * x_0 + kept * eps + fresh * draw(noise, "DDIM"), None


SOLVERS: dict[str, Solver] = {
    "ddim": DDIM(),
    "euler": DDIM(),  # other tools' name for the same step (see DDIM)
    "dpm-solver-1": DDIM(),  # another name for the same step
    "euler-a": DDIM(eta=1.0),
}
