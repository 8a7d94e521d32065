"""A training run: from the config to the result, for whatever method it names."""

from fewstep.configs import AdapterConfig, DistillConfig, FinetuneConfig
from fewstep.models.load import load_model, pick_device
from fewstep.training.adapt import LatentData, Trained, after, latent_data, trained, training_samples
from fewstep.training.loop import loop
from fewstep.training.methods import Method, method_of
from fewstep.training.methods.denoising import Denoising
from fewstep.training.networks import networks_of
from fewstep.training.progress import check_folder


def distill(config: DistillConfig) -> Trained:
    """Distil config.model on config.data; lora.safetensors (or, with --full, model/) lands in config.out."""
    return run(config, method_of(config))


def finetune(config: FinetuneConfig) -> Trained:
    """Fine-tune config.model on config.data; lora.safetensors (or, with --full, model/) lands in config.out."""
    return run(config, Denoising)


def run(config: AdapterConfig, kind: type[Method]) -> Trained:
    """Train config.model on config.data by a kind of method."""
    check_folder(config)
    samples = training_samples(config)
    method = kind(load_model(config.model, device=pick_device(config.device)), config)
    train(method, latent_data(samples, method.model, config), own=True)
    return trained(config, samples[0].captions[0])


def train(method: Method, data: LatentData, own: bool = False) -> None:
    """Train by the method on encoded data; the result lands in its config's `out`.

    own: whether the method's model is the run's own. Otherwise it is afterwards as it was, whatever happened.
    """
    config = method.config
    recipe = method.recipe(len(data))
    with networks_of(method.model, config, method.with_teacher, own) as networks:
        players = method.players(networks)
        loop(players, data, config, lambda step: networks.export(config.out, after(recipe, step)))
