"""TCD's strategic stochastic sampling (arXiv 2402.19159, Algorithm 4)."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from fewstep.diffusion.prediction import eps_from_x_0
from fewstep.diffusion.schedule import NoiseLevel, NoiseSchedule
from fewstep.diffusion.solvers.base import Ask, Levels, Noise, Solver, SolverFacts, State, Step, draw, either


@final
@dataclass(frozen=True)
class TCD(SolverFacts):
    """Jumps deterministically past t to timestep (1 - gamma) t, then adds fresh noise up to t.

    gamma: 0 is DDIM. 1 jumps to the lowest level, as LCM does. The paper's default is 0.3.
    """

    gamma: float = 0.3
    calls: ClassVar[int] = 1
    order: ClassVar[int] = 0
    distilled_only: ClassVar[bool] = True

    def levels(self, schedule: NoiseSchedule, s: NoiseLevel, t: NoiseLevel) -> Levels:
        past = schedule.at(((1 - self.gamma) * t.t).floor(), t.alpha.dtype)  # whole, as the published code has it
        return s, either(t.sigma == 0, t, past), t

    def step(self, x_s: Tensor, levels: Levels, state: State, noise: Noise | None) -> Step:
        """x_t from x_s (B, C, H, W), through the inner level u. The step to the clean end draws no noise."""
        s, u, t = levels
        x_0 = yield Ask(x_s, s)
        x_u = u.alpha * x_0 + u.sigma * eps_from_x_0(x_0, x_s, s)
        if not bool((t.sigma > 0).any()):
            return x_u, None
        kept = t.alpha / u.alpha
        return kept * x_u + (1 - kept**2).sqrt() * draw(noise, "TCD"), None


SOLVERS: dict[str, Solver] = {"tcd": TCD()}
