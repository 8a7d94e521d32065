"""A training run, from the config to the result, with the method that the config names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from fewstep.configs import AdapterConfig, DistillConfig, FinetuneConfig
from fewstep.errors import FewstepError, number_of
from fewstep.events import note
from fewstep.io import scratch
from fewstep.models.load import load_model, pick_device
from fewstep.models.model import free_encoders
from fewstep.sheets import ScoredSheet
from fewstep.training.adapt import (
    LatentData,
    Trained,
    after,
    latent_data,
    result_in,
    trained,
)
from fewstep.training.frozen import loading_dtype
from fewstep.training.loop import Look, check_precision, loop
from fewstep.training.material import material_of, with_its_framing
from fewstep.training.methods import Method, method_of
from fewstep.training.methods.denoising import Denoising
from fewstep.training.networks import networks_of
from fewstep.training.packages import check_packages
from fewstep.training.progress import check_folder
from fewstep.training.rates import steps_in
from fewstep.training.sharding import check_shard


class Previewer(Protocol):
    """Draws with the result of a run in progress."""

    def __call__(self, step: int, result: Path, captions: Sequence[str]) -> ScoredSheet:
        """Pictures drawn with `result`, the LoRA or model folder after `step` steps. captions: of the data."""


def distill(config: DistillConfig, previewer: Previewer | None = None) -> Trained:
    """Distil config.model on config.data, or on pictures that it draws itself.

    Writes lora.safetensors (model/ with --full) to config.out.
    """
    return run(config, method_of(config), previewer)


def finetune(config: FinetuneConfig, previewer: Previewer | None = None) -> Trained:
    """Fine-tune config.model on config.data. Writes lora.safetensors (model/ with --full) to config.out."""
    return run(config, Denoising, previewer)


def run(config: AdapterConfig, kind: type[Method], previewer: Previewer | None = None) -> Trained:
    """Train config.model with a method of this class. previewer: draws every config.preview_every steps."""
    config = with_its_framing(config)
    check_folder(config)
    check_precision(config)
    check_packages(config)
    check_shard(config)
    material = material_of(config)
    device, dtype = pick_device(config.device), loading_dtype(config)
    model = load_model(config.model, device=device, safety=False, unet_dtype=dtype)
    method = kind(model, config)
    encoded, captions = material(model)
    config = config.model_copy(update={"train_steps": steps_in(config, len(encoded))})
    method, data = kind(model, config), latent_data(encoded, model, config)
    free_encoders(model, keep=config.full and model.path.is_file())
    train(method, data, own=True, previewer=previewer, captions=captions)
    return trained(config, captions[0] if model.takes_text else None)


def train(
    method: Method,
    data: LatentData,
    own: bool = False,
    previewer: Previewer | None = None,
    captions: Sequence[str] = (),
) -> None:
    """Train with the method on encoded data. Writes the result to its config's `out`.

    own: whether the method's model belongs to the run. Otherwise it is as before afterwards, also after an error.
    captions: of the data, for the previewer.
    """
    config = method.config
    recipe = method.recipe(len(data))
    with networks_of(method.model, config, method.with_teacher, own) as networks:
        players = method.players(networks)

        def draw(step: int) -> ScoredSheet | None:
            if previewer is None:
                return None
            with scratch(config.out) as folder:
                networks.export(folder, after(recipe, step))
                return previewer(step, result_in(folder, config), captions)

        def look(step: int) -> ScoredSheet | None:
            every = config.preview_every
            due = every is not None and (step % every == 0 or step == config.train_steps)
            return previewed(draw, step) if due else None

        loop(players, data, config, lambda step: networks.export(config.out, after(recipe, step)), look=look)


def previewed(draw: Look, step: int) -> ScoredSheet | None:
    """What `draw` returns; None, with a note, if it fails: the training goes on."""
    try:
        return draw(step)
    except (FewstepError, OSError, torch.OutOfMemoryError) as error:
        reason = error.message.marked if isinstance(error, FewstepError) else str(error)
        note(f"no preview after {number_of(step, 'step')}: {reason}")
        return None
