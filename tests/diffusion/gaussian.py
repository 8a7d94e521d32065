"""Data whose PF-ODE is known in closed form: x_0 ~ N(mean, std**2), element by element."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.diffusion.schedule import NoiseLevel, NoiseSchedule, schedule_from_config

STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def stable_diffusion_schedule() -> NoiseSchedule:
    """The schedule all Stable Diffusion families were trained on."""
    return schedule_from_config(STABLE_DIFFUSION)


@dataclass(frozen=True)
class Gaussian:
    """x_0 ~ N(mean, std**2): along the ODE x_t = alpha mean + sqrt(alpha**2 std**2 + sigma**2) z, z constant."""

    mean: Tensor  # (1, C, 1, 1) float64
    std: Tensor  # (1, C, 1, 1) float64

    def spread(self, level: NoiseLevel) -> Tensor:
        """The standard deviation of x_t."""
        return (level.alpha**2 * self.std**2 + level.sigma**2).sqrt()

    def x(self, z: Tensor, level: NoiseLevel) -> Tensor:
        """The point at `level` of the path named by z (B, C, H, W)."""
        return level.alpha * self.mean + self.spread(level) * z

    def z(self, x_t: Tensor, level: NoiseLevel) -> Tensor:
        """The name of the path through x_t."""
        return (x_t - level.alpha * self.mean) / self.spread(level)

    def flow(self, x_s: Tensor, s: NoiseLevel, t: NoiseLevel) -> Tensor:
        """The exact solution of the ODE from s to t."""
        return self.x(self.z(x_s, s), t)

    def denoise(self, x_t: Tensor, level: NoiseLevel) -> Tensor:
        """E[x_0 | x_t]."""
        gain = level.alpha * self.std**2 / self.spread(level) ** 2
        return self.mean + gain * (x_t - level.alpha * self.mean)


def several_gaussians() -> Gaussian:
    """Five channels: nearly a point, narrower than the noise, as wide, wider, and off centre."""
    mean = torch.tensor([0.3, -0.5, 0.8, 0.0, 2.0], dtype=torch.float64)
    std = torch.tensor([0.05, 0.4, 1.0, 2.5, 0.7], dtype=torch.float64)
    return Gaussian(mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1))


def draws(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float64 values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slope(x: list[float], y: list[float]) -> float:
    """The exponent p of the law y = constant * x**p, fitted by least squares."""
    log_x = torch.tensor(x, dtype=torch.float64).log2()
    log_y = torch.tensor(y, dtype=torch.float64).log2()
    log_x = log_x - log_x.mean()
    return float((log_x * log_y).sum() / (log_x**2).sum())
