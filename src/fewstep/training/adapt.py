"""What distilling and fine-tuning share: the encoded data, the networks of a run, and its result's files."""

import copy
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fewstep.configs import AdapterConfig
from fewstep.data.cache import Encoded, encode
from fewstep.data.sources import Sample, list_samples
from fewstep.diffusion.guidance import Conditioning, Network
from fewstep.errors import UsageError
from fewstep.events import doing, note
from fewstep.hub import title_of
from fewstep.io import atomic_folder, write_json
from fewstep.lora.files import load_adapter, open_lora
from fewstep.lora.fitting import check_made_for
from fewstep.lora.layers import LoraLayers, initial, module_shapes, target_shapes
from fewstep.lora.low_rank import Adapter, LowRank
from fewstep.lora.recipe import Recipe
from fewstep.lora.writing import save_adapter
from fewstep.models.licences import licences_of
from fewstep.models.load import DTYPES, RECIPE_FILE
from fewstep.models.model import Model
from fewstep.models.network import UNetNetwork
from fewstep.models.references import LoraReference
from fewstep.models.single_file import save_folder
from fewstep.training.checkpoint import Average, Trainable, average_of
from fewstep.training.draws import SampleId, generator, normal, uniform

STUDENT, TARGET = "student", "target"


class Batch(NamedTuple):
    """Encoded samples with everything random about their visits."""

    x_0: Tensor  # (B, C, H, W)
    conditioning: Conditioning  # the empty one where the caption was dropped
    empty: Conditioning
    eps: Tensor  # (B, C, H, W) standard normal
    time: Tensor  # (B,) uniform in [0, 1), on the CPU
    guidance: Tensor  # (B,) uniform in [0, 1), on the CPU
    end: Tensor  # (B,) likewise


class LatentData:
    """Encoded samples as the loop's Data; a visit draws eps, time, guidance, whether to drop the caption, and end."""

    def __init__(self, encoded: Encoded, empty: Conditioning, drop_captions: float) -> None:
        self.encoded, self.empty, self.drop_captions = encoded, empty, drop_captions

    def __len__(self) -> int:
        return len(self.encoded)

    def batch(self, visits: Sequence[SampleId], device: torch.device) -> Batch:
        indices, generators = [visit.index for visit in visits], [generator(visit) for visit in visits]
        x_0 = self.encoded.latents(indices)
        eps = normal(generators, x_0.shape[1:])
        time, guidance, drop = uniform(generators), uniform(generators), uniform(generators) < self.drop_captions
        conditioning = self.encoded.conditioning(indices)
        empty = self.empty.expand(len(x_0))._replace(
            sizes=conditioning.sizes, mask_and_latents=conditioning.mask_and_latents
        )
        return Batch(
            x_0.to(device),
            empty.where(drop, conditioning).to(device),
            empty.to(device),
            eps.to(device),
            time,
            guidance,
            end=uniform(generators),
        )


def training_samples(config: AdapterConfig) -> list[Sample]:
    """The captioned images of --data. A note tells what of it is left out."""
    samples, notes = list_samples(config.data)
    for text in notes:
        note(text)
    return samples


def latent_data(samples: Sequence[Sample], model: Model, config: AdapterConfig) -> LatentData:
    """The images encoded by the model, once, and the empty caption's embedding."""
    size = config.size or model.size
    if size % model.factor:
        raise UsageError(
            f"--size {size} is not a multiple of {model.factor}", f"use {size // model.factor * model.factor}"
        )
    return LatentData(encode(samples, model, size), model.embed([""]).to("cpu"), config.drop_captions)


class SwitchedNetwork:
    """A network with certain LoRAs switched on for each call; none at all is the bare network."""

    def __init__(self, network: UNetNetwork, layers: LoraLayers, *adapters: str) -> None:
        self.network, self.layers = network, layers
        self.switch = tuple((adapter, 1.0) for adapter in adapters)

    def __call__(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        with self.layers.using(*self.switch):
            return self.network(x, t, conditioning)  # type: ignore[no-any-return]


class LoraStudent(nn.Module):
    """The frozen network with the trained LoRA switched on: W0 + B A. One network in memory serves every role."""

    def __init__(self, network: UNetNetwork, layers: LoraLayers) -> None:
        super().__init__()
        self.network, self.layers = network, layers

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        return self.network(x, t, conditioning)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Roles:
    """The networks of a run. Only the trainable's parameters change, and by averaging the target's."""

    trainable: Trainable  # its module is the student
    teacher: Network  # without one in a full run, the student
    target: Network
    export: Callable[[Recipe], None]  # write the averaged result under --out; of a LoRA, A and B averaged (see Average)


@doing("preparing the networks")
def new_roles(model: Model, config: AdapterConfig, target_decay: float | None, with_teacher: bool = True) -> Roles:
    """The student, teacher and target of a run on `model`, as a LoRA or, with config.full, whole.

    target_decay: of the average that is the target; None makes the student itself the target.
    with_teacher: False lets a whole network be trained in place, so that only one is in memory.
    """
    if config.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
    if config.full:
        return _full_roles(model, config, target_decay, with_teacher)
    return _lora_roles(model, config, target_decay)


def _lora_roles(model: Model, config: AdapterConfig, target_decay: float | None) -> Roles:
    model.unet.to(DTYPES[config.precision])
    network, layers = UNetNetwork(model.unet), LoraLayers(model.unet)
    updates = _initial_updates(model, config)
    layers.add(STUDENT, updates, trainable=True)
    layers.to(model.device)
    layers.switch = ((STUDENT, 1.0),)
    parameters = layers.parameters_of(STUDENT)
    averages = {"export": average_of(parameters, config.ema)}
    if target_decay is not None:
        layers.add(TARGET, {name: LowRank(*(x.clone() for x in u)) for name, u in layers.updates_of(STUDENT).items()})
        averages[TARGET] = Average(target_decay, dict(layers.parameters_of(TARGET)))
    module = LoraStudent(network, layers)

    def export(recipe: Recipe) -> None:
        shadow = averages["export"].shadow
        modules = {name: LowRank(shadow[f"{name}/A"], shadow[f"{name}/B"]) for name in updates}
        save_adapter(config.out / "lora.safetensors", Adapter(modules), recipe)

    return Roles(
        Trainable(module, parameters, averages),
        teacher=SwitchedNetwork(network, layers),
        target=SwitchedNetwork(network, layers, STUDENT if target_decay is None else TARGET),
        export=export,
    )


def _initial_updates(model: Model, config: AdapterConfig) -> dict[str, LowRank]:
    shapes = target_shapes(model.unet, config.modules)
    if config.init_lora is None:
        return initial(shapes, config.rank, config.seed)
    modules = module_shapes(model.unet)
    adapter, recipe = load_adapter(LoraReference(config.init_lora, 1.0).file, modules)
    check_made_for(adapter, recipe, modules, str(config.init_lora), str(model.path), model.prediction_type)
    ranks = sorted({adapter.size(name).rank for name in adapter.modules})
    if ranks != [config.rank]:
        raise UsageError(
            f"--rank {config.rank} differs from {config.init_lora}, which has {ranks}", f"use --rank {ranks[0]}"
        )
    if config.modules != "all" and (others := adapter.modules.keys() - shapes.keys()):
        raise UsageError(
            f"--modules {config.modules}: {config.init_lora} adapts others, such as {min(others)}", "leave it out"
        )
    return dict(adapter.modules)


def _full_roles(model: Model, config: AdapterConfig, target_decay: float | None, with_teacher: bool) -> Roles:
    unet = copy.deepcopy(model.unet) if with_teacher else model.unet
    student = UNetNetwork(unet.float().requires_grad_(True))
    parameters = dict(student.unet.named_parameters())
    averages = {"export": average_of(parameters, config.ema)}
    target: Network = student
    if target_decay is not None:
        target = UNetNetwork(copy.deepcopy(student.unet).requires_grad_(False))
        averages[TARGET] = Average(target_decay, dict(target.unet.named_parameters()))

    def export(recipe: Recipe) -> None:
        save_model(config.out / "model", model, averages["export"].shadow, recipe)

    return Roles(Trainable(student, parameters, averages), UNetNetwork(model.unet), target, export)


@doing("writing the model")
def save_model(folder: Path, model: Model, unet: dict[str, Tensor], recipe: Recipe) -> None:
    """Write the model's folder anew with these UNet weights and this recipe, whole or not at all."""
    changed = copy.deepcopy(model.unet).float()
    changed.load_state_dict(unet, strict=False)
    with atomic_folder(folder) as temporary:
        if model.path.is_file():
            save_folder(model, temporary)
        else:
            shutil.copytree(model.path, temporary, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.bin", "unet"))
        changed.to(torch.float16).save_pretrained(temporary / "unet")
        write_json(temporary / RECIPE_FILE, recipe.model_dump(mode="json"))


def describe(model: Model, config: AdapterConfig, method: str, samples: int, **training: object) -> Recipe:
    """The recipe of a result as far as distilling and fine-tuning write the same."""
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
    """The recipe of what a run leaves after `step` steps, which are fewer than planned if it was stopped."""
    planned = recipe.training["steps"]
    training = dict(recipe.training, steps=step)
    if step != planned:
        training["planned_steps"] = planned
    return recipe.model_copy(update={"training": training})


class Trained(NamedTuple):
    """What a run that ended has made."""

    result: Path  # a LoRA file, or a model folder
    caption: str  # of one of the images it was trained on


def trained(config: AdapterConfig, caption: str) -> Trained:
    """What the run of `config` has made."""
    return Trained(config.out / ("model" if config.full else "lora.safetensors"), caption)


def beginning(lora: Path) -> dict[str, Any]:
    """How the LoRA that training went on from was made itself, as far as its file says."""
    recipe = open_lora(LoraReference(lora, 1.0).file).recipe
    fields = {"method", "k", "grid", "teacher_guidance_scale", "training"}
    return recipe.model_dump(mode="json", include=fields) if recipe else {}
