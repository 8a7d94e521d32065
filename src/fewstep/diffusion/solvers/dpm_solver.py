"""DPM-Solver (arXiv 2206.00927): exponential integrators of the noise prediction in half_log_snr."""

from typing import ClassVar, final

import torch
from torch import Tensor

from fewstep.diffusion.prediction import eps_from_x_0
from fewstep.diffusion.schedule import NoiseLevel
from fewstep.diffusion.solvers.base import Ask, Levels, Midpoint, Noise, Solver, State, Step, Thirds


def first_order_weight(s: NoiseLevel, t: NoiseLevel) -> Tensor:
    """sigma_t (e^h - 1) with h = lambda_t - lambda_s, (B, 1, 1, 1), in a form that is finite at the clean end."""
    return t.alpha * s.sigma / s.alpha - t.sigma


@final
class DPMSolver2(Midpoint):
    """DPM-Solver-2, single-step: second order, two network calls a step (Algorithm 4, any inner level).

    It divides by alpha, so the plan refuses it for zero-terminal-SNR schedules (trap 10). A step to the clean end
    consists of two first-order steps through the inner level.
    """

    calls: ClassVar[int] = 2
    order: ClassVar[int] = 2
    divides_by_alpha: ClassVar[bool] = True

    def step(self, x_s: Tensor, levels: Levels, state: State, noise: Noise | None) -> Step:
        """x_t from x_s (B, C, H, W). The slope of eps is taken between s and the inner level u."""
        s, u, t = levels
        eps_s = eps_from_x_0((yield Ask(x_s, s)), x_s, s)
        x_u = u.alpha / s.alpha * x_s - first_order_weight(s, u) * eps_s
        eps_u = eps_from_x_0((yield Ask(x_u, u)), x_u, u)
        r = (u.half_log_snr - s.half_log_snr) / (t.half_log_snr - s.half_log_snr)
        eps_bar = eps_s + (eps_u - eps_s) / (2 * r)
        x_t = t.alpha / s.alpha * x_s - first_order_weight(s, t) * eps_bar
        x_clean = t.alpha / u.alpha * x_u - first_order_weight(u, t) * eps_u
        return torch.where(t.sigma == 0, x_clean, x_t), None


@final
class DPMSolver3(Thirds):
    """DPM-Solver-3, single-step: third order, three network calls a step (Algorithm 5; r1 = 1/3, r2 = 2/3).

    Another r2 would make it second order. It divides by alpha, so the plan refuses it for zero-terminal-SNR
    schedules (trap 10). A step to the clean end consists of three first-order steps through the inner levels.
    """

    calls: ClassVar[int] = 3
    order: ClassVar[int] = 3
    divides_by_alpha: ClassVar[bool] = True

    def step(self, x_s: Tensor, levels: Levels, state: State, noise: Noise | None) -> Step:
        """x_t from x_s (B, C, H, W). The slope of eps is taken between s and the second inner level v."""
        s, u, v, t = levels
        h_u, h_v, h = (level.half_log_snr - s.half_log_snr for level in (u, v, t))
        eps_s = eps_from_x_0((yield Ask(x_s, s)), x_s, s)
        x_u = u.alpha / s.alpha * x_s - first_order_weight(s, u) * eps_s
        eps_u = eps_from_x_0((yield Ask(x_u, u)), x_u, u)
        slope_u = (first_order_weight(s, v) / h_v - v.sigma) * h_v / h_u * (eps_u - eps_s)
        x_v = v.alpha / s.alpha * x_s - first_order_weight(s, v) * eps_s - slope_u
        x_v_clean = v.alpha / u.alpha * x_u - first_order_weight(u, v) * eps_u
        x_v = torch.where(t.sigma == 0, x_v_clean, x_v)
        eps_v = eps_from_x_0((yield Ask(x_v, v)), x_v, v)
        slope_v = (first_order_weight(s, t) / h - t.sigma) * h / h_v * (eps_v - eps_s)
        x_t = t.alpha / s.alpha * x_s - first_order_weight(s, t) * eps_s - slope_v
        x_clean = t.alpha / v.alpha * x_v - first_order_weight(v, t) * eps_v
        return torch.where(t.sigma == 0, x_clean, x_t), None


SOLVERS: dict[str, Solver] = {"dpm-solver": DPMSolver2(), "dpm-solver-3": DPMSolver3()}
