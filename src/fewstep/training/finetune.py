"""Fine-tuning with the ordinary denoising loss: a style LoRA, or with --full a fine-tuned model."""

from torch import Tensor, nn

from fewstep.configs import FinetuneConfig
from fewstep.models.load import load_model, pick_device
from fewstep.models.model import Model
from fewstep.training.adapt import Batch, Trained, after, describe, latent_data, new_roles, trained, training_samples
from fewstep.training.loop import loop
from fewstep.training.losses import denoising_loss
from fewstep.training.progress import check_folder


def run(config: FinetuneConfig) -> Trained:
    """Fine-tune config.model on config.data; lora.safetensors (or, with --full, model/) lands in config.out."""
    check_folder(config)
    samples = training_samples(config)
    model = load_model(config.model, device=pick_device(config.device))
    data = latent_data(samples, model, config)
    roles = new_roles(model, config, target_decay=None, with_teacher=False)
    recipe = describe(model, config, "denoising", len(samples))
    loop(
        roles.trainable,
        lambda module, batch: batch_loss(module, batch, model),
        data,
        config,
        lambda step: roles.export(after(recipe, step)),
    )
    return trained(config, samples[0].captions[0])


def batch_loss(module: nn.Module, batch: Batch, model: Model) -> Tensor:
    """The denoising loss of a batch at timesteps uniform on the schedule."""
    t = (batch.time * len(model.schedule)).long()
    level = model.schedule.at(t).to(batch.x_0.device)
    x_t = level.alpha * batch.x_0 + level.sigma * batch.eps
    return denoising_loss(module(x_t, level.t, batch.conditioning), model.prediction, batch.x_0, level, batch.eps)
