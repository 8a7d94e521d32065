"""The training losses, as functions of denoisers and tensors."""

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.diffusion.consistency import consistency
from fewstep.diffusion.guidance import Denoiser
from fewstep.diffusion.prediction import Prediction
from fewstep.diffusion.schedule import NoiseLevel, NoiseSchedule
from fewstep.diffusion.solvers.base import Solver, run_step

Distance = Callable[[Tensor], Tensor]  # differences (B, C, H, W) -> of each value, the same shape
Jump = Callable[[Denoiser, Tensor, NoiseLevel], Tensor]  # x (B, C, H, W) at a level -> where the ODE through it leads


def pseudo_huber(difference: Tensor, c: float) -> Tensor:
    """sqrt(d**2 + c**2) - c of each value: |d| far from 0, d**2 / 2c near it (arXiv 2310.14189, eq. 9).

    Elementwise, as the published LCM training scripts have it, not on the norm of each sample.
    """
    return torch.sqrt(difference**2 + c**2) - c


def squared(difference: Tensor) -> Tensor:
    """The square of each value."""
    return difference**2


def lcd_loss(
    student: Denoiser,
    target: Denoiser,
    teacher: Denoiser,
    psi: Solver,
    schedule: NoiseSchedule,
    x_0: Tensor,
    s: NoiseLevel,
    t: NoiseLevel,
    eps: Tensor,
    distance: Distance,
    jump: Jump = consistency,
    weight: Tensor | float = 1.0,
) -> Tensor:
    """Latent consistency distillation loss (LCM-LoRA report, Algorithm 1), scalar.

    x_0, eps: (B, C, H, W). s, t: k timesteps apart, per sample. teacher: already guided, so Psi steps along
    the guided ODE; for DDIM this is Algorithm 1's (1 + w) Psi(c) - w Psi(empty) exactly (see GuidedDenoiser).
    jump: where student and target are to arrive alike; with `jump_to` this is trajectory consistency distillation's
    loss (arXiv 2402.19159, section 4.1).
    weight: of each sample's distance, (B, 1, 1, 1).
    """
    x_s = s.alpha * x_0 + s.sigma * eps
    with torch.no_grad():
        x_t, _ = run_step(psi.step(x_s, psi.levels(schedule, s, t), None, None), teacher)
    return _apart(student, target, x_s, s, x_t, t, distance, jump, weight)


def lcf_loss(
    student: Denoiser,
    target: Denoiser,
    x_0: Tensor,
    s: NoiseLevel,
    t: NoiseLevel,
    eps: Tensor,
    distance: Distance,
    weight: Tensor | float = 1.0,
) -> Tensor:
    """Latent consistency fine-tuning loss (arXiv 2310.04378, Algorithm 4), scalar, which needs no teacher.

    x_0, eps: (B, C, H, W). s, t: k timesteps apart, per sample. Both points are made of the same noise, a step along
    the ODE of the images x_0 on average over eps alone: the student has to be a consistency model already.
    weight: as in lcd_loss.
    """
    x_s, x_t = (level.alpha * x_0 + level.sigma * eps for level in (s, t))
    return _apart(student, target, x_s, s, x_t, t, distance, consistency, weight)


def _apart(
    student: Denoiser,
    target: Denoiser,
    x_s: Tensor,
    s: NoiseLevel,
    x_t: Tensor,
    t: NoiseLevel,
    distance: Distance,
    jump: Jump,
    weight: Tensor | float,
) -> Tensor:
    """How far from where the target arrives, which has no gradient, the student does.

    The student is called last, so that what it switched on stays on for the backward pass.
    """
    with torch.no_grad():
        aim = jump(target, x_t, t)
    return (weight * distance(jump(student, x_s, s) - aim)).mean()


def denoising_loss(output: Tensor, prediction: Prediction, x_0: Tensor, level: NoiseLevel, eps: Tensor) -> Tensor:
    """The ordinary diffusion loss: mean squared error of the network's output (DDPM, arXiv 2006.11239, eq. 14)."""
    return squared(output - prediction.aim(x_0, eps, level)).mean()
