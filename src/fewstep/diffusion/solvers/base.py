"""What a solver is: one step of a PF-ODE solver, for the sampler and, with the guided teacher, as Psi."""

from collections.abc import Callable, Generator
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from fewstep.diffusion.guidance import Denoiser
from fewstep.diffusion.schedule import NoiseLevel, NoiseSchedule

Noise = Callable[[], Tensor]
Levels = tuple[NoiseLevel, ...]
State = Any  # what a multistep solver remembers; None at the start and for single-step solvers


class Ask(NamedTuple):
    """Where a step wants the estimate of x_0, which is the answer."""

    x: Tensor  # (B, C, H, W)
    level: NoiseLevel


Step = Generator[Ask, Tensor, tuple[Tensor, State]]  # in the end x at the last level, and the state for the next step


class Solver(Protocol):
    """One step s -> t, from the noisier to the cleaner level; every sample may have levels of its own.

    A solver's facts stand on its class and nowhere else. `SolverFacts` has those that are the same for most.
    """

    calls: ClassVar[int]  # network evaluations a step
    multistep: ClassVar[bool]  # needs history, so cannot be Psi (trap 7)
    divides_by_alpha: ClassVar[bool]  # so cannot begin at pure noise (trap 10)
    distilled_only: ClassVar[bool]  # for distilled networks alone, on the grid that they were trained on
    follows_consistency: ClassVar[bool]  # asks for the consistency function instead of the bare estimate of x_0

    @property
    def order(self) -> int:
        """Of convergence, measured by a test; 0 for solvers that add noise."""

    def levels(self, schedule: NoiseSchedule, s: NoiseLevel, t: NoiseLevel) -> Levels:
        """(s, *inner, t), once, before the step."""

    def step(self, x_s: Tensor, levels: Levels, state: State, noise: Noise | None) -> Step:
        """x_s (B, C, H, W) at levels[0] -> x at levels[-1], by asking for x_0 at levels[0], ..., levels[calls - 1].

        Who runs the step answers: the sampler and Psi at once (`run_step`), the diffusers scheduler when the pipeline
        brings the network's output.
        """


def run_step(step: Step, denoise: Denoiser) -> tuple[Tensor, State]:
    """What the step ends with, `denoise` answering whatever it asks."""
    ask = next(step)
    while True:
        x_0 = denoise(*ask)
        try:
            ask = step.send(x_0)
        except StopIteration as end:
            x_t, state = end.value
            return x_t, state


class SolverFacts:
    """The facts of most solvers; the others have their own instead."""

    multistep: ClassVar[bool] = False
    divides_by_alpha: ClassVar[bool] = False
    distilled_only: ClassVar[bool] = False
    follows_consistency: ClassVar[bool] = False


class EndsOnly(SolverFacts):
    """`levels` of the solvers without inner levels."""

    def levels(self, schedule: NoiseSchedule, s: NoiseLevel, t: NoiseLevel) -> Levels:
        return s, t


def at_an_end(s: NoiseLevel, t: NoiseLevel) -> Tensor:
    """Whether a step starts at pure noise or ends clean, (B, 1, 1, 1): half_log_snr changes by infinity."""
    return (s.alpha == 0) | (t.sigma == 0)


def either(condition: Tensor, a: NoiseLevel, b: NoiseLevel) -> NoiseLevel:
    """Level a for the images where the condition (B, 1, 1, 1) holds, b for the others."""
    return NoiseLevel(
        torch.where(condition.view(-1), a.t, b.t),
        torch.where(condition, a.alpha, b.alpha),
        torch.where(condition, a.sigma, b.sigma),
    )


def inner_level(schedule: NoiseSchedule, s: NoiseLevel, t: NoiseLevel, r: float) -> NoiseLevel:
    """The level r of the way from s to t, in half_log_snr; where a step at an end makes that infinite, in time."""
    inner = schedule.at_half_log_snr((1 - r) * s.half_log_snr + r * t.half_log_snr, s.alpha.dtype)
    in_time = schedule.at((1 - r) * s.t + r * t.t, s.alpha.dtype)
    return either(at_an_end(s, t), in_time, inner)


class Midpoint(SolverFacts):
    """`levels` of the two-stage solvers: one inner level halfway."""

    def levels(self, schedule: NoiseSchedule, s: NoiseLevel, t: NoiseLevel) -> Levels:
        return s, inner_level(schedule, s, t, 1 / 2), t


class Thirds(SolverFacts):
    """`levels` of the three-stage solvers: inner levels at one and two thirds of the way."""

    def levels(self, schedule: NoiseSchedule, s: NoiseLevel, t: NoiseLevel) -> Levels:
        return s, inner_level(schedule, s, t, 1 / 3), inner_level(schedule, s, t, 2 / 3), t


def draw(noise: Noise | None, name: str) -> Tensor:
    """Fresh noise (B, C, H, W) for the solver so named; ValueError without a source of it."""
    if noise is None:
        raise ValueError(f"{name}'s step adds noise and needs a source of it")
    return noise()
