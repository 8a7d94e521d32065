"""Code that the consistency methods share: pairs of levels, the target, the recipe."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.configs import DistillConfig
from fewstep.diffusion.guidance import GuidedDenoiser, Network, with_guidance
from fewstep.diffusion.schedule import NoiseLevel, NoiseSchedule, clean_level, skipping_grid
from fewstep.diffusion.solvers.base import either
from fewstep.errors import UsageError, option
from fewstep.lora.recipe import Recipe
from fewstep.models.model import Model
from fewstep.session.plan import lay_timesteps, psi_named, refuse_zero_snr
from fewstep.training.adapt import Batch, describe, usual_guidance
from fewstep.training.losses import Distance, Jump, lcd_loss, pseudo_huber, squared
from fewstep.training.methods.method import refuse_embedded_guidance
from fewstep.training.networks import STUDENT, Networks
from fewstep.training.players import Player
from fewstep.training.synthetic import origin_of

FEW = (1, 2, 4, 8)  # numbers of sampling steps whose timesteps --focus prefers
LCM_GUIDANCE = (3.0, 15.0)  # guidance scales for LCM's w from 2 to 14 (arXiv 2310.04378, section 5)
CLEAN = -1  # stands for the clean level: the number before the first timestep


class Pair(NamedTuple):
    """Two levels per sample, k timesteps apart, that a consistency model must map to the same point."""

    s: NoiseLevel
    t: NoiseLevel
    ends: Tensor  # (B,) int64 on the CPU, the timesteps of t; CLEAN for the clean level
    weight: Tensor | float  # (B, 1, 1, 1), of each sample's distance


def check_teacher(config: DistillConfig) -> None:
    """Raise UsageError for a solver that cannot be Psi, and for an empty range of guidance scales."""
    psi_named(config.psi)
    lowest, highest = guidance_range(config)
    if highest < lowest:
        raise UsageError(
            f"{option('guidance_scale_max')} {highest:g} is below {option('guidance_scale')}",
            f"make {option('guidance_scale_max')} the larger one",
        )
    if config.w_embedding and lowest == highest:
        raise UsageError(
            f"{option('w_embedding')} learns a range of guidance, and {option('guidance_scale')} is {lowest:g} alone",
            f"add {option('guidance_scale_max')}, or leave both out for {LCM_GUIDANCE[0]:g} to {LCM_GUIDANCE[1]:g}",
        )


def check_model(model: Model, config: DistillConfig) -> None:
    """Raise UsageError for a model that cannot be the teacher, and for a Psi that does not suit its schedule."""
    refuse_zero_snr(config.psi, model.schedule)
    refuse_embedded_guidance(model)
    if not model.takes_text and config.prompt_file is not None:
        raise UsageError(f"{option('prompt_file')}: {model.path} draws without a prompt", "leave it out")
    if not model.takes_text and guidance_range(config) != (1, 1):
        raise UsageError(
            f"{option('method')} {config.method} distils guidance, but {model.path} takes no text to guide by",
            f"use {option('method')} cd, or add {option('guidance_scale')} 1",
        )


def consistency_players(
    networks: Networks, config: DistillConfig, loss: Callable[[Network, Network, Batch], Tensor]
) -> dict[str, Player]:
    """The student as the only player. loss: of student, target and batch. target: the student's average or itself."""
    student = networks.trainable(STUDENT, config.w_embedding)
    target = networks.following(STUDENT, config.target_decay) if config.target == "ema" else networks.network(STUDENT)
    return {STUDENT: Player(student, lambda module, batch, step: loss(module, target, batch))}


def distilling_players(
    networks: Networks, model: Model, config: DistillConfig, jump: Callable[[Pair, Batch], Jump]
) -> dict[str, Player]:
    """The student as the only player. Its jump from s must agree with its jump after the teacher's step from s to t.

    jump: makes the jump of a pair of levels and a batch.
    """
    teacher = networks.teacher

    def loss(student: Network, target: Network, batch: Batch) -> Tensor:
        device, schedule = batch.x_0.device, model.schedule
        pair, scales = pair_of(config, schedule, batch), guidance_scales(config, batch.guidance, device)
        guided = denoiser_of(model, batch)(teacher, empty=batch.empty, guidance_scale=scales)
        denoiser = denoiser_of(model, batch, scales if config.w_embedding else None)
        return lcd_loss(
            denoiser(student),
            denoiser(target),
            guided,
            psi_named(config.psi),
            schedule,
            batch.x_0,
            pair.s,
            pair.t,
            batch.eps,
            distance_of(config),
            jump(pair, batch),
            pair.weight,
        )

    return consistency_players(networks, config, loss)


def denoiser_of(model: Model, batch: Batch, embedded: float | Tensor | None = None) -> Callable[..., GuidedDenoiser]:
    """A function that makes a network a denoiser of the batch. It also takes GuidedDenoiser's other options.

    embedded: the guidance scale for a network that takes it as an input: one for all samples, or (B,).
    """
    conditioning = batch.conditioning if embedded is None else with_guidance(batch.conditioning, embedded)
    return partial(GuidedDenoiser, prediction=model.prediction, conditioning=conditioning)


def pair_of(config: DistillConfig, schedule: NoiseSchedule, batch: Batch) -> Pair:
    """The pair of levels for a batch, on its device."""
    starts, ends = timesteps(config, batch.time, len(schedule))
    s, t = (level.to(batch.x_0.device) for level in (schedule.at(starts), level_at(schedule, ends)))
    grid = torch.tensor(skipping_grid(config.k, len(schedule)))
    return Pair(s, t, ends, weights(config, schedule, s, t, grid, grid - config.k))


def timesteps(config: DistillConfig, place: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """s on the skipping grid and t = s - k, (B,) int64, chosen by place (B,) in [0, 1). The last step ends at CLEAN.

    The published script clamps that t to timestep 0 (trap 9), so its student learns to leave noise in the picture.

    A share config.focus of the places goes to the timesteps at which sampling in FEW steps evaluates the network.
    """
    grid, few = torch.tensor(skipping_grid(config.k, T)), torch.tensor(few_step_timesteps(config.k, T, config.grid))
    focused = place < config.focus
    rest = ((place - config.focus) / max(1 - config.focus, 1e-9)).clamp(0, 1)
    s = torch.where(focused, at(few, place / max(config.focus, 1e-9)), at(grid, rest))
    return s, s - config.k


def level_at(schedule: NoiseSchedule, timesteps: Tensor) -> NoiseLevel:
    """The levels at timesteps (B,). CLEAN gives the clean level."""
    clean = (timesteps == CLEAN).view(-1, 1, 1, 1)
    return either(clean, clean_level(), schedule.at(timesteps.clamp(min=0)))


def at(points: Tensor, place: Tensor) -> Tensor:
    """The entries (B,) of the list `points` at relative places in [0, 1]."""
    return points[(place * len(points)).long().clamp(0, len(points) - 1)]


def few_step_timesteps(k: int, T: int, grid: str) -> list[int]:
    """The timesteps, ascending, at which LCM's sampler evaluates the network in FEW steps."""
    return sorted({t for steps in FEW if steps <= T // k for t in lay_timesteps("lcm", steps, grid, k, T)})


def guidance_scales(config: DistillConfig, place: Tensor, device: torch.device) -> float | Tensor:
    """The teacher's guidance scale: a fixed one, or one per sample, at `place` in [0, 1) of the requested range."""
    lowest, highest = guidance_range(config)
    return lowest if lowest == highest else (lowest + (highest - lowest) * place).to(device)


def weights(
    config: DistillConfig, schedule: NoiseSchedule, s: NoiseLevel, t: NoiseLevel, starts: Tensor, ends: Tensor
) -> Tensor | float:
    """The weight of each sample's distance: 1 for all, or (B, 1, 1, 1), 1 / sigma or 1 / (length of its step).

    The length is that in sigma / alpha (iCT, arXiv 2310.14189, section 3.1). As x_0 = alpha x - sigma v, an x_0 that is
    wrong by sigma is a v that is wrong by 1: so 1 / sigma lets a network with v-prediction learn at all levels alike.
    Both are scaled so that the mean over the grid is 1. starts, ends: the timesteps of all steps of the grid, (N,).
    """
    if config.weighting == "uniform":
        return 1.0
    if config.weighting == "inverse-noise":
        return 1 / s.sigma / (1 / schedule.at(starts).sigma).mean()
    return 1 / step_length(s, t) / (1 / step_length(schedule.at(starts), level_at(schedule, ends))).mean()


def step_length(s: NoiseLevel, t: NoiseLevel) -> Tensor:
    """The decrease of sigma / alpha from s to t."""
    return s.sigma / s.alpha - t.sigma / t.alpha


def distance_of(config: DistillConfig) -> Distance:
    """The distance that --loss names."""
    return partial(pseudo_huber, c=config.huber_c) if config.loss == "huber" else squared


def guidance_range(config: DistillConfig) -> tuple[float, float]:
    """The teacher's lowest and highest guidance scale. With --w-embedding alone, LCM's range."""
    if config.w_embedding and not {"guidance_scale", "guidance_scale_max"} & config.model_fields_set:
        return LCM_GUIDANCE
    return config.guidance_scale, config.guidance_scale_max or config.guidance_scale


def distilled_recipe(model: Model, config: DistillConfig, samples: int, solver: str) -> Recipe:
    """The recipe of a student that was distilled from a guided teacher."""
    lowest, highest = guidance_range(config)
    guidance_scale = min(max(usual_guidance(model), lowest), highest) if config.w_embedding else 1.0
    own = {"psi": config.psi, "w_embedding": config.w_embedding}
    return recipe_of(model, config, samples, solver, (lowest, highest), guidance_scale, **own)


def recipe_of(
    model: Model,
    config: DistillConfig,
    samples: int,
    solver: str,
    guidance: tuple[float, float] | None,
    guidance_scale: float = 1.0,
    **training: object,
) -> Recipe:
    """The recipe of the result. It is sampled with `solver`, unless --sampler names another, at `guidance_scale`.

    guidance: the teacher's, which is distilled into the student. training: facts of the method for the recipe, besides
    those that all methods share.
    """
    common = {
        "loss": config.loss,
        "huber_c": config.huber_c if config.loss == "huber" else None,
        "target": config.target,
        "target_decay": config.target_decay,
        "focus": config.focus,
        "weighting": config.weighting,
    }
    if config.synthetic:
        training["synthetic"] = origin_of(config, model)
    described = describe(model, config, config.method, samples, **common, **training)
    solver = solver if config.sampler == "auto" else config.sampler
    steps = min(4, len(model.schedule) // config.k)
    sampling = {"solver": solver, "steps": steps, "guidance_scale": guidance_scale, "k": config.k, "grid": config.grid}
    return described.model_copy(update=sampling | {"teacher_guidance_scale": guidance})
