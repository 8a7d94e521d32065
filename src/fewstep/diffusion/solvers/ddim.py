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
    """DDIM's step to a level, from any noisier one: TCD's first-order TCF in eps (arXiv 2402.19159, section 4.1).

    Where it has no length it is x itself, the boundary condition. end: per sample.
    """

    def jump(denoise: Denoiser, x_s: Tensor, s: NoiseLevel) -> Tensor:
        x_t, _ = run_step(DDIM().step(x_s, (s, end), None, None), denoise)
        return torch.where(s.sigma == end.sigma, x_s, x_t)

    return jump


@final
@dataclass(frozen=True)
class DDIM(EndsOnly):
    """DDIM: first order, one network call a step; also DPM-Solver-1 and DPM-Solver++(1) (eq. 12, eta = 0).

    It is Euler's step too, of x / alpha in sigma / alpha (arXiv 2206.00364); and at eta = 1, DDPM's,
    it is k-diffusion's ancestral Euler step. Both are equalities, and tested.

    eta: 0 is deterministic; above, up to 1, that part of DDPM's noise is replaced by fresh noise (eq. 16).
    """

    eta: float = 0.0
    calls: ClassVar[int] = 1

    @property
    def order(self) -> int:
        """1, or 0 where noise is added."""
        return 1 if self.eta == 0 else 0

    def step(self, x_s: Tensor, levels: Levels, state: State, noise: Noise | None) -> Step:
        """x_t = alpha_t x_0 + sigma_t eps, both taken from x_s (B, C, H, W); with eta, eps is partly fresh."""
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
    "euler": DDIM(),  # the same step (see DDIM), by the name it has elsewhere
    "dpm-solver-1": DDIM(),  # likewise
    "euler-a": DDIM(eta=1.0),
}
