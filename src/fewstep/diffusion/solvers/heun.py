"""Heun's method as in EDM (arXiv 2206.00364), for variance-preserving levels."""

from typing import ClassVar, final

import torch
from torch import Tensor

from fewstep.diffusion.prediction import eps_from_x_0
from fewstep.diffusion.schedule import NoiseLevel, NoiseSchedule
from fewstep.diffusion.solvers.base import (
    Ask,
    Levels,
    Noise,
    Solver,
    SolverFacts,
    State,
    Step,
    at_an_end,
    either,
)
from fewstep.diffusion.solvers.dpm_solver import first_order_weight

FAINT = 0.01  # alpha below which a level counts as pure noise. In sigma / alpha a step from there is so long that the
# mean of its two eps overshoots by as much as sigma / alpha falls: pictures burn.


def in_two(s: NoiseLevel, t: NoiseLevel) -> Tensor:
    """Whether a step from s to t consists of two first-order steps, (B, 1, 1, 1)."""
    return at_an_end(s, t) | (s.alpha < FAINT)


@final
class Heun(SolverFacts):
    """Heun's step of x / alpha in sigma / alpha: second order, two network calls a step (Algorithm 1, no churn).

    Its inner level is t itself: DPM-Solver-2 with r = 1. A step from pure noise, or nearly so, or to the clean end
    consists of two first-order steps through the level halfway in time. EDM's last step is one Euler step of one call.
    """

    calls: ClassVar[int] = 2
    order: ClassVar[int] = 2

    def levels(self, schedule: NoiseSchedule, s: NoiseLevel, t: NoiseLevel) -> Levels:
        return s, either(in_two(s, t), schedule.at((s.t + t.t) / 2, s.alpha.dtype), t), t

    def step(self, x_s: Tensor, levels: Levels, state: State, noise: Noise | None) -> Step:
        """x_t from x_s (B, C, H, W), along the mean of eps at s and eps at the end of the Euler step."""
        s, u, t = levels
        x_0_s = yield Ask(x_s, s)
        eps_s = eps_from_x_0(x_0_s, x_s, s)
        x_u = u.alpha * x_0_s + u.sigma * eps_s
        x_0_u = yield Ask(x_u, u)
        eps_u = eps_from_x_0(x_0_u, x_u, u)
        x_t = x_u - first_order_weight(s, t) * (eps_u - eps_s) / 2
        return torch.where(in_two(s, t), t.alpha * x_0_u + t.sigma * eps_u, x_t), None


SOLVERS: dict[str, Solver] = {"heun": Heun()}
