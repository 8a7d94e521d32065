"""Latent consistency distillation (LCM-LoRA report, Algorithm 1), its trajectory kind (TCD) and fine-tuning (LCF)."""

from functools import partial

import torch
from torch import Tensor, nn

from fewstep.configs import DistillConfig
from fewstep.diffusion.consistency import consistency
from fewstep.diffusion.guidance import GuidedDenoiser
from fewstep.diffusion.schedule import NoiseLevel, NoiseSchedule, clean_level, skipping_grid
from fewstep.diffusion.solvers.base import either
from fewstep.diffusion.solvers.ddim import jump_to
from fewstep.errors import UsageError
from fewstep.lora.files import open_lora
from fewstep.lora.recipe import Recipe
from fewstep.models.load import load_model, pick_device
from fewstep.models.model import Model
from fewstep.models.references import LoraReference
from fewstep.session.plan import lay_timesteps, psi_named, refuse_zero_snr
from fewstep.training.adapt import (
    Batch,
    LatentData,
    Roles,
    Trained,
    after,
    describe,
    latent_data,
    new_roles,
    trained,
    training_samples,
)
from fewstep.training.loop import loop
from fewstep.training.losses import Distance, lcd_loss, lcf_loss, pseudo_huber, squared
from fewstep.training.progress import check_folder

FEW = (1, 2, 4, 8)  # steps of sampling whose timesteps --focus means
CLEAN = -1  # the timestep, so to say, of the clean level: one before the first


def run(config: DistillConfig) -> Trained:
    """Distil config.model on config.data; lora.safetensors (or, with --full, model/) lands in config.out."""
    check_method(config)
    check_folder(config)
    samples = training_samples(config)
    model = load_model(config.model, device=pick_device(config.device))
    refuse_zero_snr(config.psi, model.schedule)
    distil(config, model, latent_data(samples, model, config))
    return trained(config, samples[0].captions[0])


def distil(config: DistillConfig, model: Model, data: LatentData) -> None:
    """Distil the loaded model on encoded data."""
    recipe = recipe_of(model, config, len(data))
    target_decay = config.target_decay if config.target == "ema" else None
    roles = new_roles(model, config, target_decay, with_teacher=config.method != "lcf")
    loop(
        roles.trainable,
        lambda module, batch: batch_loss(module, batch, roles, model, config),
        data,
        config,
        lambda step: roles.export(after(recipe, step)),
    )


def check_method(config: DistillConfig) -> None:
    """Raise UsageError for values that do not go together, before anything is read."""
    psi_named(config.psi)
    if (highest := config.guidance_scale_max or config.guidance_scale) < config.guidance_scale:
        raise UsageError(f"--guidance-scale-max {highest:g} is below --guidance-scale", "give the larger one last")
    of_teacher = {"psi": "--psi", "guidance_scale": "--guidance-scale", "guidance_scale_max": "--guidance-scale-max"}
    if config.method == "lcf" and (
        asked := [of_teacher[name] for name in of_teacher if name in config.model_fields_set]
    ):
        raise UsageError(
            f"{', '.join(asked)}: of a teacher, which lcf does without", "leave it out, or use --method lcd"
        )


def batch_loss(module: nn.Module, batch: Batch, roles: Roles, model: Model, config: DistillConfig) -> Tensor:
    """The loss of a batch by config.method, guidance fixed or per sample."""
    device, schedule, distance = batch.x_0.device, model.schedule, distance_of(config)
    starts, ends = timesteps(config, batch.time, len(schedule))
    s, t = schedule.at(starts).to(device), level_at(schedule, ends).to(device)
    weight = weights(config, schedule, s, t)
    denoiser = partial(GuidedDenoiser, prediction=model.prediction, conditioning=batch.conditioning)
    student, target = denoiser(module), denoiser(roles.target)
    if config.method == "lcf":
        return lcf_loss(student, target, batch.x_0, s, t, batch.eps, distance, weight)
    guidance = guidance_scales(config, batch.guidance, device)
    teacher, psi = denoiser(roles.teacher, empty=batch.empty, guidance_scale=guidance), psi_named(config.psi)
    end = level_at(schedule, (batch.end * (ends + 2)).floor() - 1).to(device)  # of CLEAN ... t, all alike
    jump = jump_to(end) if config.method == "tcd" else consistency
    return lcd_loss(student, target, teacher, psi, schedule, batch.x_0, s, t, batch.eps, distance, jump, weight)


def timesteps(config: DistillConfig, place: Tensor, T: int) -> tuple[Tensor, Tensor]:
    """s on the skipping grid and t = s - k, (B,) int64, of places (B,) in [0, 1); the last step ends at CLEAN.

    The published script clamps that t to timestep 0 (trap 9), whose noise the student then learns to leave in.

    A share config.focus of the places is spread over the timesteps that sampling in FEW steps begins from.
    """
    grid, few = torch.tensor(skipping_grid(config.k, T)), torch.tensor(few_step_timesteps(config.k, T, config.grid))
    focused = place < config.focus
    rest = ((place - config.focus) / max(1 - config.focus, 1e-9)).clamp(0, 1)
    s = torch.where(focused, at(few, place / max(config.focus, 1e-9)), at(grid, rest))
    return s, s - config.k


def level_at(schedule: NoiseSchedule, timesteps: Tensor) -> NoiseLevel:
    """The levels at timesteps (B,), of which CLEAN is the clean one."""
    clean = (timesteps == CLEAN).view(-1, 1, 1, 1)
    return either(clean, clean_level(), schedule.at(timesteps.clamp(min=0)))


def at(points: Tensor, place: Tensor) -> Tensor:
    """The points (B,) at places in [0, 1] of a list of them."""
    return points[(place * len(points)).long().clamp(0, len(points) - 1)]


def few_step_timesteps(k: int, T: int, grid: str) -> list[int]:
    """Where LCM's sampler evaluates the network in FEW steps, ascending."""
    return sorted({t for steps in FEW if steps <= T // k for t in lay_timesteps("lcm", steps, grid, k, T)})


def guidance_scales(config: DistillConfig, place: Tensor, device: torch.device) -> float | Tensor:
    """The teacher's guidance: the fixed scale, or one per sample at `place` in [0, 1) of the range asked."""
    if config.guidance_scale_max is None:
        return config.guidance_scale
    return (config.guidance_scale + (config.guidance_scale_max - config.guidance_scale) * place).to(device)


def weights(config: DistillConfig, schedule: NoiseSchedule, s: NoiseLevel, t: NoiseLevel) -> Tensor | float:
    """Of each sample's distance, (B, 1, 1, 1): all alike, or 1 / length of its step in sigma / alpha.

    Source of the latter: iCT, arXiv 2310.14189, section 3.1. Its mean over the grid is made 1.
    """
    if config.weighting == "uniform":
        return 1.0
    ends = torch.tensor(skipping_grid(config.k, len(schedule)))
    return 1 / step_length(s, t) / (1 / step_length(schedule.at(ends), level_at(schedule, ends - config.k))).mean()


def step_length(s: NoiseLevel, t: NoiseLevel) -> Tensor:
    """How much sigma / alpha falls from s to t."""
    return s.sigma / s.alpha - t.sigma / t.alpha


def distance_of(config: DistillConfig) -> Distance:
    """The distance --loss names."""
    return partial(pseudo_huber, c=config.huber_c) if config.loss == "huber" else squared


def recipe_of(model: Model, config: DistillConfig, samples: int) -> Recipe:
    """How the result wants to be sampled."""
    training: dict[str, object] = {
        "loss": config.loss,
        "huber_c": config.huber_c if config.loss == "huber" else None,
        "target": config.target,
        "target_decay": config.target_decay,
        "focus": config.focus,
        "weighting": config.weighting,
    }
    guidance: tuple[float, float] | None = config.guidance_scale, config.guidance_scale_max or config.guidance_scale
    if config.method == "lcf":
        guidance = few_step_start(model, config).teacher_guidance_scale
    else:
        training["psi"] = config.psi
    described = describe(model, config, config.method, samples, **training)
    own = "tcd" if config.method == "tcd" else "lcm"
    solver = own if config.sampler == "auto" else config.sampler
    steps = min(4, len(model.schedule) // config.k)
    sampling = {"solver": solver, "steps": steps, "guidance_scale": 1.0, "k": config.k, "grid": config.grid}
    return described.model_copy(update=sampling | {"teacher_guidance_scale": guidance})


def few_step_start(model: Model, config: DistillConfig) -> Recipe:
    """The recipe of the few-step model that lcf goes on from. Raises UsageError if there is none."""
    own = open_lora(LoraReference(config.init_lora, 1.0).file).recipe if config.init_lora else model.recipe
    if own is None or own.solver != "lcm":
        what = config.init_lora or config.model
        raise UsageError(
            f"lcf goes on from a latent consistency model, and {what} does not say that it is one",
            "give --init-lora an LCM-LoRA, or --model what distill --full or export made",
        )
    return own
