"""DPM-Solver++ (arXiv 2211.01095): exponential integrators of the data prediction in half_log_snr."""

from typing import ClassVar, final

import torch
from torch import Tensor

from fewstep.diffusion.schedule import NoiseLevel
from fewstep.diffusion.solvers.base import Ask, EndsOnly, Levels, Midpoint, Noise, Solver, State, Step, at_an_end


def data_step(x_s: Tensor, x_0: Tensor, s: NoiseLevel, t: NoiseLevel) -> Tensor:
    """sigma_t / sigma_s x_s - alpha_t (e^-h - 1) x_0, exact when x_0 is constant between s and t (eq. 8)."""
    h = t.half_log_snr - s.half_log_snr
    return t.sigma / s.sigma * x_s - t.alpha * torch.expm1(-h) * x_0


@final
class DPMSolverPP2M(EndsOnly):
    """DPM-Solver++(2M): second order, one network call a step (Algorithm 2)."""

    calls: ClassVar[int] = 1
    order: ClassVar[int] = 2
    multistep: ClassVar[bool] = True

    def step(self, x_s: Tensor, levels: Levels, state: State, noise: Noise | None) -> Step:
        """x_t from x_s (B, C, H, W), and the history (x_0, h). First order without history and to the clean end."""
        s, t = levels
        x_0, h = (yield Ask(x_s, s)), t.half_log_snr - s.half_log_snr
        x_0_bar = x_0
        if state is not None:
            last_x_0, last_h = state
            x_0_bar = torch.where(h.isfinite(), x_0 + (x_0 - last_x_0) * h / (2 * last_h), x_0)
        return data_step(x_s, x_0_bar, s, t), (x_0, h)


@final
class DPMSolverPP2S(Midpoint):
    """DPM-Solver++(2S), single-step: second order, two network calls a step (Algorithm 1, any inner level).

    A step from pure noise or to the clean end consists of two first-order steps through the inner level.
    """

    calls: ClassVar[int] = 2
    order: ClassVar[int] = 2

    def step(self, x_s: Tensor, levels: Levels, state: State, noise: Noise | None) -> Step:
        """x_t from x_s (B, C, H, W). The slope of x_0 is taken between s and the inner level u."""
        s, u, t = levels
        x_0_s = yield Ask(x_s, s)
        x_u = data_step(x_s, x_0_s, s, u)
        x_0_u = yield Ask(x_u, u)
        r = (u.half_log_snr - s.half_log_snr) / (t.half_log_snr - s.half_log_snr)
        x_0_bar = x_0_s + (x_0_u - x_0_s) / (2 * r)
        return torch.where(at_an_end(s, t), data_step(x_u, x_0_u, u, t), data_step(x_s, x_0_bar, s, t)), None


@final
class DPMSolverPP3M(EndsOnly):
    """DPM-Solver++(3M): third order, one network call a step (section 4, from three estimates of x_0).

    The published code and diffusers take half the second difference here (`bend`), which is only second order.
    The first two steps lack a full history and are steps of 2M. With many steps, the error of these two dominates:
    the order is then 2. It is 3 when the starting values are exact.
    """

    calls: ClassVar[int] = 1
    order: ClassVar[int] = 3
    multistep: ClassVar[bool] = True

    def step(self, x_s: Tensor, levels: Levels, state: State, noise: Noise | None) -> Step:
        """x_t from x_s (B, C, H, W), and the last two (x_0, h), newest first. First order to the clean end."""
        s, t = levels
        x_0, h = (yield Ask(x_s, s)), t.half_log_snr - s.half_log_snr
        history = ((x_0, h), *(state or ()))[:2]
        x_t = first_order = data_step(x_s, x_0, s, t)
        if state is not None:
            last_x_0, last_h = state[0]
            slope = (x_0 - last_x_0) * h / last_h
            x_t = data_step(x_s, x_0 + slope / 2, s, t)
        if state is not None and len(state) == 2:
            older_x_0, older_h = state[1]
            bend = (slope - (last_x_0 - older_x_0) * h / older_h) * h / (last_h + older_h)
            slope = slope + bend * last_h / h
            phi_1 = torch.expm1(-h)
            phi_2 = phi_1 / h + 1
            x_t = first_order + t.alpha * (phi_2 * slope - 2 * (phi_2 / h - 1 / 2) * bend)
        return torch.where(h.isfinite(), x_t, first_order), history


SOLVERS: dict[str, Solver] = {
    "dpm-solver++": DPMSolverPP2M(),
    "dpm-solver++2s": DPMSolverPP2S(),
    "dpm-solver++3m": DPMSolverPP3M(),
}
