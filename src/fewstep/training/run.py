"""A training run, from the config to the result, with the method that the config names."""

from fewstep.configs import AdapterConfig, DistillConfig, FinetuneConfig
from fewstep.models.load import load_model, pick_device
from fewstep.training.adapt import LatentData, Trained, after, latent_data, trained, training_samples
from fewstep.training.loop import loop
from fewstep.training.methods import Method, method_of
from fewstep.training.methods.denoising import Denoising
from fewstep.training.networks import networks_of
from fewstep.training.progress import check_folder


def distill(config: DistillConfig) -> Trained:
    """Distil config.model on config.data. Writes lora.safetensors (model/ with --full) to config.out."""
    return run(config, method_of(config))


def finetune(config: FinetuneConfig) -> Trained:
    """Fine-tune config.model on config.data. Writes lora.safetensors (model/ with --full) to config.out."""
    return run(config, Denoising)


def run(config: AdapterConfig, kind: type[Method]) -> Trained:
    """Train config.model on config.data with a method of this class."""
    check_folder(config)
    samples = training_samples(config)
    method = kind(load_model(config.model, device=pick_device(config.device)), config)
    train(method, latent_data(samples, method.model, config), own=True)
    return trained(config, samples[0].captions[0])


def train(method: Method, data: LatentData, own: bool = False) -> None:
    """Train with the method on encoded data. Writes the result to its config's `out`.

    own: whether the method's model belongs to the run. Otherwise it is as before afterwards, also after an error.
    """
    config = method.config
    recipe = method.recipe(len(data))
    with networks_of(method.model, config, method.with_teacher, own) as networks:
        players = method.players(networks)
        loop(players, data, config, lambda step: networks.export(config.out, after(recipe, step)))
