"""The solver protocol: one step of a PF-ODE solver. The sampler uses it, and distillation uses it as Psi."""

from collections.abc import Callable, Generator
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from fewstep.diffusion.guidance import Denoiser
from fewstep.diffusion.schedule import NoiseLevel, NoiseSchedule

Noise = Callable[[], Tensor]
Levels = tuple[NoiseLevel, ...]
State = Any  # memory of a multistep solver; None at the start and for single-step solvers


class Ask(NamedTuple):
    """A question of a step: the estimate of x_0 at this x and level. The answer is sent into the generator."""

    x: Tensor  # (B, C, H, W)
    level: NoiseLevel


Step = Generator[Ask, Tensor, tuple[Tensor, State]]  # returns x at the last level, and the state for the next step


class Solver(Protocol):
    """One step s -> t, from the noisier to the cleaner level. Every sample of a batch may have its own levels.

    A solver's facts are attributes of its class and are written nowhere else. `SolverFacts` has the usual values.
    """

    calls: ClassVar[int]  # network evaluations a step
    multistep: ClassVar[bool]  # it needs history, so it cannot be Psi (trap 7)
    divides_by_alpha: ClassVar[bool]  # it cannot begin at pure noise (trap 10)
    distilled_only: ClassVar[bool]  # only for distilled networks, on the grid that they were trained on
    follows_consistency: ClassVar[bool]  # it asks for the consistency function, not for the bare estimate of x_0

    @property
    def order(self) -> int:
        """The order of convergence, which a test measures. 0 for solvers that add noise."""

    def levels(self, schedule: NoiseSchedule, s: NoiseLevel, t: NoiseLevel) -> Levels:
        """(s, *inner levels, t) of a step. Called once, before the step."""

    def step(self, x_s: Tensor, levels: Levels, state: State, noise: Noise | None) -> Step:
        """x at levels[-1], from x_s (B, C, H, W) at levels[0]. Asks for x_0 at levels[0], ..., levels[calls - 1].

        The code that runs the step answers. The sampler and Psi answer at once (`run_step`). The diffusers scheduler
        answers when the pipeline brings the network's output.
        """


def run_step(step: Step, denoise: Denoiser) -> tuple[Tensor, State]:
    """The result of a step: x at its last level, and the state. `denoise` answers the questions of the step."""
    ask = next(step)
    while True:
        x_0 = denoise(*ask)
        try:
            ask = step.send(x_0)
        except StopIteration as end:
            x_t, state = end.value
            return x_t, state


class SolverFacts:
    """The usual facts of a solver. A solver that differs sets its own."""

    multistep: ClassVar[bool] = False
    divides_by_alpha: ClassVar[bool] = False
    distilled_only: ClassVar[bool] = False
    follows_consistency: ClassVar[bool] = False


class EndsOnly(SolverFacts):
    """`levels` for solvers without inner levels."""

    def levels(self, schedule: NoiseSchedule, s: NoiseLevel, t: NoiseLevel) -> Levels:
        return s, t


def at_an_end(s: NoiseLevel, t: NoiseLevel) -> Tensor:
    """Whether a step starts at pure noise or ends clean, (B, 1, 1, 1). half_log_snr is infinite at these ends."""
    return (s.alpha == 0) | (t.sigma == 0)


def either(condition: Tensor, a: NoiseLevel, b: NoiseLevel) -> NoiseLevel:
    """Level a for the images where the condition (B, 1, 1, 1) holds, b for the others."""
    return NoiseLevel(
        torch.where(condition.view(-1), a.t, b.t),
        torch.where(condition, a.alpha, b.alpha),
        torch.where(condition, a.sigma, b.sigma),
    )


def inner_level(schedule: NoiseSchedule, s: NoiseLevel, t: NoiseLevel, r: float) -> NoiseLevel:
    """The level at the fraction r of the way from s to t, measured in half_log_snr.

    For a step from pure noise or to the clean end, where half_log_snr is infinite, it is measured in time.
    """
    inner = schedule.at_half_log_snr((1 - r) * s.half_log_snr + r * t.half_log_snr, s.alpha.dtype)
    in_time = schedule.at((1 - r) * s.t + r * t.t, s.alpha.dtype)
    return either(at_an_end(s, t), in_time, inner)


class Midpoint(SolverFacts):
    """`levels` for two-stage solvers: one inner level halfway."""

    def levels(self, schedule: NoiseSchedule, s: NoiseLevel, t: NoiseLevel) -> Levels:
        return s, inner_level(schedule, s, t, 1 / 2), t


class Thirds(SolverFacts):
    """`levels` for three-stage solvers: inner levels at one and two thirds of the way."""

    def levels(self, schedule: NoiseSchedule, s: NoiseLevel, t: NoiseLevel) -> Levels:
        return s, inner_level(schedule, s, t, 1 / 3), inner_level(schedule, s, t, 2 / 3), t


def draw(noise: Noise | None, name: str) -> Tensor:
    """Fresh noise (B, C, H, W) for the solver of this name. Raises ValueError when `noise` is None."""
    if noise is None:
        raise ValueError(f"{name}'s step adds noise and needs a source of it")
    return noise()
