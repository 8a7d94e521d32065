"""LCM's multistep sampling (arXiv 2310.04378, Algorithm 3)."""

from typing import ClassVar, final

from torch import Tensor

from fewstep.diffusion.solvers.base import Ask, EndsOnly, Levels, Noise, Solver, State, Step, draw


@final
class LCM(EndsOnly):
    """Jumps to the clean end with the consistency function, then adds fresh noise for the next level."""

    calls: ClassVar[int] = 1
    order: ClassVar[int] = 0
    distilled_only: ClassVar[bool] = True
    follows_consistency: ClassVar[bool] = True

    def step(self, x_s: Tensor, levels: Levels, state: State, noise: Noise | None) -> Step:
        """x_t = alpha_t f(x_s, s) + sigma_t z. The step to the clean end draws no noise z."""
        s, t = levels
        x_0 = yield Ask(x_s, s)
        if not bool((t.sigma > 0).any()):
            return x_0, None
        return t.alpha * x_0 + t.sigma * draw(noise, "LCM"), None


SOLVERS: dict[str, Solver] = {"lcm": LCM()}
