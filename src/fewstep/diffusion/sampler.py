"""sample(): the one sampling loop. DDIM, DPM-Solver and LCM differ only in two of its arguments."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.diffusion.guidance import Denoiser
from fewstep.diffusion.schedule import NoiseLevel, NoiseSchedule, clean_level
from fewstep.diffusion.solvers.base import Noise, Solver, run_step

OnStep = Callable[[int, NoiseLevel, Tensor], object]


def ignore(index: int, level: NoiseLevel, x: Tensor) -> None:
    """Do nothing after a step."""


def sample(
    denoise: Denoiser,
    solver: Solver,
    schedule: NoiseSchedule,
    levels: Sequence[NoiseLevel],
    x: Tensor,
    noise: Noise,
    on_step: OnStep = ignore,
) -> Tensor:
    """x (B, C, H, W) at levels[-1], solved from x at levels[0].

    levels: N + 1 of them for N steps, noisiest first. Each is for one image or for B.
    noise: draws standard normal values (B, C, H, W). Only solvers that add noise call it.
    on_step: called after each step with its index, the level reached and x there.
    """
    state = None
    for index, (s, t) in enumerate(pairwise(levels)):
        x, state = run_step(solver.step(x, solver.levels(schedule, s, t), state, noise), denoise)
        on_step(index, t, x)
    return x


def sampling_levels(
    schedule: NoiseSchedule,
    timesteps: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> list[NoiseLevel]:
    """The levels of a descending timestep grid, then the clean level. Each is for one image."""
    if any(s <= t for s, t in pairwise(timesteps)):
        raise ValueError(f"timesteps must descend: {list(timesteps)}")
    levels = [schedule.at(float(t), dtype) for t in timesteps] + [clean_level(1, dtype)]
    return [level.to(device) for level in levels]


class ImageNoise:
    """Draws standard normal noise from one CPU generator per image. An image's noise depends on its seed alone."""

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        """seeds: one per image. shape: (C, H, W) of one image's noise. device: where the noise is sent."""
        self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self.shape = tuple(shape)
        self.device = device

    def __call__(self) -> Tensor:
        """Fresh noise (B, C, H, W), float32."""
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators]).to(self.device)
