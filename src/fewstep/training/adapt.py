"""Code that distilling and fine-tuning share: the encoded data, and the recipe of the result."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep.configs import AdapterConfig, DataEncodeConfig
from fewstep.data.cache import Encoded
from fewstep.data.framing import Framing
from fewstep.data.sources import Sample, listed
from fewstep.diffusion.guidance import Conditioning
from fewstep.errors import UsageError, option
from fewstep.hub import title_of
from fewstep.lora.files import open_lora
from fewstep.lora.recipe import Recipe
from fewstep.models.licences import licences_of
from fewstep.models.load import takes_text
from fewstep.models.model import Model
from fewstep.models.references import LoraReference
from fewstep.session.plan import DEFAULT_GUIDANCE_SCALE
from fewstep.training.draws import SampleId, generator, integers, normal, uniform
from fewstep.training.frozen import storage_of


class Batch(NamedTuple):
    """Encoded samples, with all random values of their visits."""

    x_0: Tensor  # (B, C, H, W)
    conditioning: Conditioning  # the empty one for samples whose caption was dropped
    empty: Conditioning
    eps: Tensor  # (B, C, H, W) standard normal
    time: Tensor  # (B,) uniform in [0, 1), on the CPU
    guidance: Tensor  # (B,) uniform in [0, 1), on the CPU
    end: Tensor  # (B,) uniform in [0, 1), on the CPU


class LatentData:
    """Encoded samples as the loop's Data.

    A visit draws a view and a caption if its sample has several, then eps, time, guidance, whether to drop the caption,
    end, and the latents if their deviations are kept.
    """

    def __init__(self, encoded: Encoded, empty: Conditioning, drop_captions: float) -> None:
        self.encoded, self.empty, self.drop_captions = encoded, empty, drop_captions

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def groups(self) -> list[Tensor]:
        return self.encoded.groups

    @property
    def identity(self) -> str:
        return self.encoded.identity

    def batch(self, visits: Sequence[SampleId], device: torch.device) -> Batch:
        encoded, indices, generators = self.encoded, [visit.index for visit in visits], [*map(generator, visits)]
        views = integers(generators, encoded.views).tolist() if encoded.views > 1 else None
        captions = [chosen(generators[i], encoded.captions(index)) for i, index in enumerate(indices)]
        x_0 = encoded.latents(indices, views)
        eps = normal(generators, x_0.shape[1:])
        time, guidance, drop = uniform(generators), uniform(generators), uniform(generators) < self.drop_captions
        conditioning = encoded.conditioning(indices, views, captions)
        empty = self.empty.expand(len(x_0))._replace(
            sizes=conditioning.sizes, mask_and_latents=conditioning.mask_and_latents
        )
        end, deviations = uniform(generators), encoded.deviations(indices, views)
        if deviations is not None:
            x_0 = x_0 + deviations * normal(generators, x_0.shape[1:])
        return Batch(
            x_0.to(device),
            empty.where(drop, conditioning).to(device),
            empty.to(device),
            eps.to(device),
            time,
            guidance,
            end,
        )


def chosen(generator: torch.Generator, count: int) -> int:
    """A random number from 0 to count - 1. Nothing is drawn if there is no choice."""
    return int(integers([generator], count)) if count > 1 else 0


def training_samples(config: AdapterConfig) -> list[Sample]:
    """The images of --data that count, with captions if the model takes text. A note tells what is left out."""
    assert config.data is not None, "the config asks for it"
    return listed(config, config.data, takes_text(config.model), config.out)


def training_size(model: Model, config: AdapterConfig | DataEncodeConfig) -> int:
    """The side, in pixels, of the training images. Raises UsageError for one that the autoencoder cannot take."""
    size = config.size or model.size
    if size % model.multiple:
        fitting = max(size // model.multiple, 1) * model.multiple
        raise UsageError(f"{option('size')} {size} is not a multiple of {model.multiple}", f"use {fitting}")
    return size


def framing_of(model: Model, config: AdapterConfig | DataEncodeConfig) -> Framing:
    """How the training images are cut."""
    return Framing(
        training_size(model, config),
        model.multiple,
        config.buckets,
        config.random_crops,
        config.random_flip,
        config.sample_latents,
    )


def usual_guidance(model: Model) -> float:
    """The usual guidance scale for sampling the model without LoRAs."""
    if not model.takes_text:
        return 1.0
    own = model.recipe
    recommended = own.guidance_scale if own and not own.accelerates else None
    return DEFAULT_GUIDANCE_SCALE if recommended is None else recommended


def latent_data(encoded: Encoded, model: Model, config: AdapterConfig) -> LatentData:
    """The encoded samples, and the embedding of the empty caption."""
    return LatentData(encoded, model.embed([""]).to("cpu"), config.drop_captions)


def describe(model: Model, config: AdapterConfig, method: str, samples: int, **training: object) -> Recipe:
    """The part of a result's recipe that is the same for distilling and fine-tuning."""
    summary: dict[str, object] = {
        "steps": config.train_steps,
        "batch_size": config.batch_size * config.accumulate,
        "learning_rate": config.learning_rate,
        "warmup": config.warmup,
        "decay": config.decay,
        "ema": config.ema,
        "seed": config.seed,
        "samples": samples,
        "size": config.size or model.size,
        "rank": None if config.full else config.rank,
        "modules": None if config.full else config.modules,
        "lora_alpha": None if config.full else config.lora_alpha or config.rank,
        "lora_dropout": None if config.full else config.lora_dropout,
        "frozen_weights": None if config.full else storage_of(config),
    }
    if config.init_lora is not None:
        summary["began_from"] = beginning(config.init_lora)
    own = model.recipe
    return Recipe(
        method=method,
        guidance_scale=own.guidance_scale if own and not own.accelerates else None,
        family=model.family,
        prediction_type=model.prediction_type,
        base_model=title_of(model.path),
        base_sha256=model.unet_sha256(),
        licence="; ".join(licences_of(str(model.path))),
        training=summary | training,
    )


def after(recipe: Recipe, step: int) -> Recipe:
    """The recipe of a result after `step` steps. A stopped run has fewer steps than planned."""
    planned = recipe.training["steps"]
    training = dict(recipe.training, steps=step)
    if step != planned:
        training["planned_steps"] = planned
    return recipe.model_copy(update={"training": training})


class Trained(NamedTuple):
    """The result of a run that has ended."""

    result: Path  # a LoRA file, or a model folder
    caption: str | None  # of one of the images that it was trained on; None if the model takes no text


def trained(config: AdapterConfig, caption: str | None) -> Trained:
    """The result of the run with this config."""
    return Trained(result_in(config.out, config), caption)


def result_in(folder: Path, config: AdapterConfig) -> Path:
    """Where a run's result lies that was exported to a folder."""
    return folder / ("model" if config.full else "lora.safetensors")


def beginning(lora: Path) -> dict[str, Any]:
    """How the LoRA from which training continued was made, as far as its file tells."""
    recipe = open_lora(LoraReference(lora, 1.0).file).recipe
    fields = {"method", "k", "grid", "teacher_guidance_scale", "training"}
    return recipe.model_dump(mode="json", include=fields) if recipe else {}
