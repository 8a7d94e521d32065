"""What a solver is: one step of a PF-ODE solver, for the sampler and, with the guided teacher, as Psi."""

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from fewstep.diffusion.guidance import Denoiser
from fewstep.diffusion.schedule import NoiseLevel, NoiseSchedule

Noise = Callable[[], Tensor]
Levels = tuple[NoiseLevel, ...]
State = Any  # what a multistep solver remembers; None at the start and for single-step solvers


class Solver(Protocol):
    """One step s -> t, from the noisier to the cleaner level; every sample may have levels of its own."""

    calls: ClassVar[int]  # network evaluations a step
    order: ClassVar[int]  # of convergence, measured by a test; 0 for solvers that add noise
    multistep: ClassVar[bool]  # needs history, so cannot be Psi (trap 7)

    def levels(self, schedule: NoiseSchedule, s: NoiseLevel, t: NoiseLevel) -> Levels:
        """(s, *inner, t), once, before the step."""

    def step(
        self, denoise: Denoiser, x_s: Tensor, levels: Levels, state: State, noise: Noise | None
    ) -> tuple[Tensor, State]:
        """x_s (B, C, H, W) at levels[0] -> x at levels[-1], and the state for the next step."""


class EndsOnly:
    """`levels` of the solvers without inner levels."""

    def levels(self, schedule: NoiseSchedule, s: NoiseLevel, t: NoiseLevel) -> Levels:
        return s, t


def at_an_end(s: NoiseLevel, t: NoiseLevel) -> Tensor:
    """Whether a step starts at pure noise or ends clean, (B, 1, 1, 1): half_log_snr changes by infinity."""
    return (s.alpha == 0) | (t.sigma == 0)


class Midpoint:
    """`levels` of the two-stage solvers: one inner level halfway in half_log_snr.

    From pure noise and to the clean end, where half_log_snr is infinite, the inner level is halfway in time.
    """

    def levels(self, schedule: NoiseSchedule, s: NoiseLevel, t: NoiseLevel) -> Levels:
        inner = schedule.at_half_log_snr((s.half_log_snr + t.half_log_snr) / 2, s.alpha.dtype)
        halfway = schedule.at((s.t + t.t) / 2, s.alpha.dtype)
        infinite = at_an_end(s, t)
        return (
            s,
            NoiseLevel(
                torch.where(infinite.view(-1), halfway.t, inner.t),
                torch.where(infinite, halfway.alpha, inner.alpha),
                torch.where(infinite, halfway.sigma, inner.sigma),
            ),
            t,
        )
