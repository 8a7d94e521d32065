"""Noise levels, variance-preserving schedules and timestep grids."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep.errors import FewstepError, UsageError


class NoiseLevel(NamedTuple):
    """One point of the forward process, x_t = alpha * x_0 + sigma * eps."""

    t: Tensor  # (B,) float             timestep given to the network; a whole number on the trained grid
    alpha: Tensor  # (B, 1, 1, 1) float     signal scale
    sigma: Tensor  # (B, 1, 1, 1) float     noise scale; alpha**2 + sigma**2 == 1

    @property
    def half_log_snr(self) -> Tensor:
        """lambda = log(alpha / sigma), (B, 1, 1, 1); +inf at the clean end (DPM-Solver, eq. 3.3)."""
        return self.alpha.log() - self.sigma.log()

    def expand(self, batch: int) -> "NoiseLevel":
        """This level (batch size 1) repeated for `batch` images."""
        return NoiseLevel(*(x.expand(batch, *x.shape[1:]) for x in self))

    def to(self, device: torch.device | str) -> "NoiseLevel":
        """This level on `device`."""
        return NoiseLevel(*(x.to(device) for x in self))


def level_from_half_log_snr(t: Tensor, half_log_snr: Tensor, dtype: torch.dtype = torch.float32) -> NoiseLevel:
    """The variance-preserving level with this half_log_snr (B,). The network gets t (B,) for it."""
    half_log_snr = half_log_snr.double().view(-1, 1, 1, 1)
    alpha = torch.sigmoid(2 * half_log_snr).sqrt()
    sigma = torch.sigmoid(-2 * half_log_snr).sqrt()
    return NoiseLevel(t.to(dtype).view(-1), alpha.to(dtype), sigma.to(dtype))


def clean_level(batch: int = 1, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> NoiseLevel:
    """The clean end of the process: t = 0, alpha = 1, sigma = 0. The schedule's table does not hold it (trap 2)."""
    one = torch.ones(batch, 1, 1, 1, dtype=dtype, device=device)
    return NoiseLevel(torch.zeros(batch, dtype=dtype, device=device), one, torch.zeros_like(one))


@dataclass(frozen=True)
class NoiseSchedule:
    """A variance-preserving schedule with T whole timesteps (DDPM, arXiv 2006.11239).

    alpha_bar: (T,) float64, decreasing, in [0, 1): alpha(t)**2 at timesteps 0 ... T - 1.
    """

    alpha_bar: Tensor

    def __post_init__(self) -> None:
        bar = self.alpha_bar
        if bar.ndim != 1 or len(bar) < 2 or not bool((bar[1:] < bar[:-1]).all() & (bar >= 0).all() & (bar < 1).all()):
            raise FewstepError(
                "the noise schedule's alpha_bar does not decrease inside [0, 1)",
                "check beta_start, beta_end and beta_schedule",
            )

    def __len__(self) -> int:
        return len(self.alpha_bar)

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether the last level is pure noise (arXiv 2305.08891)."""
        return bool(self.alpha_bar[-1] == 0)

    def half_log_snr(self) -> Tensor:
        """lambda at every whole timestep, (T,) float64."""
        return 0.5 * (self.alpha_bar.log() - torch.log1p(-self.alpha_bar))

    def at(self, t: Tensor | Sequence[float] | float, dtype: torch.dtype = torch.float32) -> NoiseLevel:
        """The level at timesteps t (B,) in [0, T - 1]. Between whole timesteps, half_log_snr is linear in t."""
        given = t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)
        t, table = _on_cpu(given), self.half_log_snr()
        low = t.floor().long().clamp(0, len(self) - 1)
        high = (low + 1).clamp(max=len(self) - 1)
        part = t - low
        between = table[low] + part * (table[high] - table[low])
        return level_from_half_log_snr(t, torch.where(part == 0, table[low], between), dtype).to(given.device)

    def at_half_log_snr(self, half_log_snr: Tensor, dtype: torch.dtype = torch.float32) -> NoiseLevel:
        """The level with this half_log_snr (B, 1, 1, 1) or (B,). Its timestep comes from the inverse of `at`.

        Outside the table, the timestep is the nearest end of the table.
        """
        target, table = _on_cpu(half_log_snr), self.half_log_snr().flip(0)  # ascending
        right = torch.searchsorted(table, target).clamp(1, len(self) - 1)
        part = ((target - table[right - 1]) / (table[right] - table[right - 1])).clamp(0, 1)
        return level_from_half_log_snr((len(self) - 1) - (right - 1 + part), target, dtype).to(half_log_snr.device)


def _on_cpu(values: Tensor) -> Tensor:
    """The values flat, in float64, on the CPU. The table is there, and Apple's GPUs have no float64."""
    return values.to("cpu").double().reshape(-1)


SCHEDULE_KEYS = (  # keys of a diffusers scheduler config that describe the noise, whichever solver uses it
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)


def schedule_from_config(config: Mapping[str, Any]) -> NoiseSchedule:
    """The schedule that a diffusers scheduler config describes.

    Reads num_train_timesteps, beta_start, beta_end, beta_schedule (linear, scaled_linear,
    squaredcos_cap_v2), trained_betas and rescale_betas_zero_snr.
    """
    steps = config.get("num_train_timesteps", 1000)
    if steps is None:
        raise FewstepError("num_train_timesteps is null", "give the number of timesteps, for most models 1000")
    name = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None:
        beta = torch.tensor(config["trained_betas"], dtype=torch.float64)
    elif name in _BETAS:
        beta = _BETAS[name](float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02)), steps)
    else:
        raise FewstepError(f"unknown beta_schedule {name!r}", f"known ones: {', '.join(_BETAS)}")
    alpha_bar = torch.cumprod(1 - beta, 0)
    if config.get("rescale_betas_zero_snr"):
        alpha_bar = _rescale_zero_snr(alpha_bar)
    return NoiseSchedule(alpha_bar)


def _linear(start: float, end: float, steps: int) -> Tensor:
    return torch.linspace(start, end, steps, dtype=torch.float64)


def _scaled_linear(start: float, end: float, steps: int) -> Tensor:
    return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2


def _cosine(start: float, end: float, steps: int) -> Tensor:
    def bar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    beta = [min(1 - bar((i + 1) / steps) / bar(i / steps), 0.999) for i in range(steps)]
    return torch.tensor(beta, dtype=torch.float64)


_BETAS = {"linear": _linear, "scaled_linear": _scaled_linear, "squaredcos_cap_v2": _cosine}


def _rescale_zero_snr(alpha_bar: Tensor) -> Tensor:
    """alpha_bar shifted and scaled so that its last value is exactly 0 (arXiv 2305.08891, Algorithm 1)."""
    root = alpha_bar.sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root**2


def skipping_grid(k: int = 20, T: int = 1000) -> list[int]:
    """LCM's training grid s = k i - 1, i = 1 ... T / k, ascending (trap 9)."""
    if not 1 <= k <= T:
        raise UsageError(f"skipping step k = {k} is outside 1 to {T}", "LCM uses k = 20")
    return [k * i - 1 for i in range(1, T // k + 1)]


def lcm_grid(steps: int, k: int = 20, T: int = 1000, quadratic: bool = False) -> list[int]:
    """`steps` timesteps of LCM's training grid, descending from its last one, evenly spaced by index.

    quadratic: the indices are squares of evenly spaced numbers instead. The timesteps are then denser towards the
    clean end, so that the last step is shorter (DDIM, arXiv 2010.02502, appendix D.2).
    Raises UsageError when the grid has fewer than `steps` timesteps.
    """
    _check_steps(steps, T)
    points = skipping_grid(k, T)[::-1]
    n = len(points)
    if steps > n:
        raise UsageError(f"steps = {steps} is more than the {n} timesteps of the training grid, k = {k}", f"use {n}")
    if not quadratic:
        return [points[math.floor(i * n / steps)] for i in range(steps)]
    left = [round(n * ((steps - i) / steps) ** 2) for i in range(steps)]
    return [points[n - max(points_left, steps - i)] for i, points_left in enumerate(left)]  # one for each later step


def trailing_grid(steps: int, T: int = 1000) -> list[int]:
    """`steps` timesteps, evenly spaced, descending from T - 1 to about T / steps (arXiv 2305.08891)."""
    _check_steps(steps, T)
    return [round(T - i * T / steps) - 1 for i in range(steps)]


def leading_grid(steps: int, T: int = 1000, offset: int = 1) -> list[int]:
    """`steps` multiples of T // steps plus `offset`, descending: Stable Diffusion's own grid for DDIM and PNDM.

    The offset is made smaller when a timestep would exceed T - 1. An offset of 1 is smaller only when steps = T.
    """
    _check_steps(steps, T)
    stride = T // steps
    offset = min(offset, T - 1 - (steps - 1) * stride)
    return [i * stride + offset for i in range(steps)][::-1]


def linspace_grid(steps: int, T: int = 1000) -> list[int]:
    """`steps` evenly spaced timesteps from T - 1 down to 0, both included."""
    _check_steps(steps, T)
    return [round(i * (T - 1) / max(steps - 1, 1)) for i in range(steps)][::-1] if steps > 1 else [T - 1]


def _check_steps(steps: int, T: int) -> None:
    if not 1 <= steps <= T:
        raise UsageError(f"steps = {steps} is outside 1 to {T}", "4 is usual with an acceleration LoRA, 20 without")
