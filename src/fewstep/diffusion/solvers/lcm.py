"""LCM's multistep sampling (arXiv 2310.04378, Algorithm 3)."""

from typing import ClassVar, final

from torch import Tensor

from fewstep.diffusion.guidance import Denoiser
from fewstep.diffusion.solvers.base import EndsOnly, Levels, Noise, State, draw


@final
class LCM(EndsOnly):
    """Jump to the clean end, then add fresh noise for the next level; `denoise` is the consistency function."""

    calls: ClassVar[int] = 1
    order: ClassVar[int] = 0
    multistep: ClassVar[bool] = False

    def step(
        self, denoise: Denoiser, x_s: Tensor, levels: Levels, state: State, noise: Noise | None
    ) -> tuple[Tensor, State]:
        """x_t = alpha_t f(x_s, s) + sigma_t z; nothing is drawn on the way to the clean end."""
        s, t = levels
        x_0 = denoise(x_s, s)
        if not bool((t.sigma > 0).any()):
            return x_0, None
        return t.alpha * x_0 + t.sigma * draw(noise, "LCM"), None
