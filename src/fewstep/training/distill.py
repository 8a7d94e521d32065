"""Latent consistency distillation (LCM-LoRA report, Algorithm 1) of a model on captioned images."""

from functools import partial

import torch
from torch import Tensor, nn

from fewstep.configs import DistillConfig
from fewstep.data.folder import read_items
from fewstep.diffusion.guidance import GuidedDenoiser
from fewstep.diffusion.schedule import skipping_grid
from fewstep.diffusion.solvers import Solver
from fewstep.errors import UsageError
from fewstep.lora.recipe import Recipe
from fewstep.models.load import load_model, pick_device
from fewstep.models.model import Model
from fewstep.planning import psi_named, refuse_zero_snr
from fewstep.training.adapt import Batch, Roles, describe, latent_data, new_roles
from fewstep.training.loop import loop
from fewstep.training.losses import Distance, lcd_loss, pseudo_huber, squared
from fewstep.training.progress import check_folder


def run(config: DistillConfig) -> None:
    """Distil config.model on config.data; lora.safetensors (or, with --full, model/) lands in config.out."""
    psi = psi_named(config.psi)
    highest = config.guidance_scale_max or config.guidance_scale
    if highest < config.guidance_scale:
        raise UsageError(f"--guidance-scale-max {highest:g} is below --guidance-scale", "give the larger one last")
    check_folder(config)
    items = read_items(config.data)
    model = load_model(config.model, device=pick_device(config.device))
    refuse_zero_snr(config.psi, model.schedule)
    data = latent_data(items, model, config)
    roles = new_roles(model, config, config.target_decay if config.target == "ema" else None)
    recipe = recipe_of(model, config, len(items))
    loop(
        roles.trainable,
        lambda module, batch: batch_loss(module, batch, roles, model, psi, config),
        data,
        config,
        lambda step: roles.export(recipe),
    )


def batch_loss(
    module: nn.Module, batch: Batch, roles: Roles, model: Model, psi: Solver, config: DistillConfig
) -> Tensor:
    """The LCD loss of a batch: s on the skipping grid, t = max(s - k, 0) (trap 9), guidance fixed or per sample."""
    device = batch.x_0.device
    grid = torch.tensor(skipping_grid(config.k, len(model.schedule)))
    s = grid[(batch.time * len(grid)).long()]
    t = (s - config.k).clamp(min=0)
    denoiser = partial(GuidedDenoiser, prediction=model.prediction, conditioning=batch.conditioning)
    return lcd_loss(
        student=denoiser(module),
        target=denoiser(roles.target),
        teacher=denoiser(
            roles.teacher, empty=batch.empty, guidance_scale=guidance_scales(config, batch.guidance, device)
        ),
        psi=psi,
        schedule=model.schedule,
        x_0=batch.x_0,
        s=model.schedule.at(s).to(device),
        t=model.schedule.at(t).to(device),
        eps=batch.eps,
        distance=distance_of(config),
    )


def guidance_scales(config: DistillConfig, place: Tensor, device: torch.device) -> float | Tensor:
    """The teacher's guidance: the fixed scale, or one per sample at `place` in [0, 1) of the range asked."""
    if config.guidance_scale_max is None:
        return config.guidance_scale
    return (config.guidance_scale + (config.guidance_scale_max - config.guidance_scale) * place).to(device)


def distance_of(config: DistillConfig) -> Distance:
    """The distance --loss names."""
    return partial(pseudo_huber, c=config.huber_c) if config.loss == "huber" else squared


def recipe_of(model: Model, config: DistillConfig, samples: int) -> Recipe:
    """How the result wants to be sampled."""
    described = describe(
        model,
        config,
        config.method,
        samples,
        psi=config.psi,
        loss=config.loss,
        target=config.target,
        target_decay=config.target_decay,
    )
    return described.model_copy(
        update={
            "solver": "lcm",
            "steps": 4,
            "guidance_scale": 1.0,
            "k": config.k,
            "teacher_guidance_scale": (config.guidance_scale, config.guidance_scale_max or config.guidance_scale),
        }
    )
