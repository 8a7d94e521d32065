"""The training losses as functions of denoisers and tensors."""

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.diffusion.consistency import consistency
from fewstep.diffusion.guidance import Denoiser
from fewstep.diffusion.prediction import Prediction
from fewstep.diffusion.schedule import NoiseLevel, NoiseSchedule
from fewstep.diffusion.solvers.base import Solver, run_step

Distance = Callable[[Tensor], Tensor]  # differences (B, C, H, W) -> the loss of each value, same shape
Jump = Callable[[Denoiser, Tensor, NoiseLevel], Tensor]  # x (B, C, H, W) at a level -> a later point of its ODE


def pseudo_huber(difference: Tensor, c: float) -> Tensor:
    """sqrt(d**2 + c**2) - c for each value d: about |d| far from 0, about d**2 / 2c near it (arXiv 2310.14189, eq. 9).

    It applies to each value, as in the published LCM training scripts, not to the norm of each sample.
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

    x_0, eps: (B, C, H, W). s, t: one level per sample, k timesteps apart. teacher: already guided, so Psi steps along
    the guided ODE. For DDIM this equals Algorithm 1's (1 + w) Psi(c) - w Psi(empty) exactly (see GuidedDenoiser).
    jump: gives the point where student and target must agree. With `jump_to` the loss is that of trajectory consistency
    distillation (arXiv 2402.19159, section 4.1).
    weight: (B, 1, 1, 1), of each sample's distance.
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
    """Latent consistency fine-tuning loss (arXiv 2310.04378, Algorithm 4), scalar. It needs no teacher.

    x_0, eps: (B, C, H, W). s, t: one level per sample, k timesteps apart. Both points have the same noise. This is a
    step along the ODE of the images x_0 only on average over eps, so the student must already be a consistency model.
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
    """The distance between the student's jump from x_s and the target's jump from x_t. The target has no gradient.

    The student is called last, so that the LoRAs it switched on stay on for the backward pass.
    """
    with torch.no_grad():
        aim = jump(target, x_t, t)
    return (weight * distance(jump(student, x_s, s) - aim)).mean()


def denoising_loss(output: Tensor, prediction: Prediction, x_0: Tensor, level: NoiseLevel, eps: Tensor) -> Tensor:
    """The ordinary diffusion loss, the mean squared error of the network's output (DDPM, arXiv 2006.11239, eq. 14)."""
    return squared(output - prediction.aim(x_0, eps, level)).mean()
