"""A training run, from the config to the result, with the method that the config names."""

from collections.abc import Callable

from fewstep.configs import AdapterConfig, DistillConfig, FinetuneConfig
from fewstep.data.cache import Encoded, captions_of, encode
from fewstep.models.load import load_model, pick_device
from fewstep.models.model import Model
from fewstep.training.adapt import LatentData, Trained, after, latent_data, trained, training_samples, training_size
from fewstep.training.loop import check_precision, loop
from fewstep.training.methods import Method, method_of
from fewstep.training.methods.denoising import Denoising
from fewstep.training.networks import networks_of
from fewstep.training.progress import check_folder
from fewstep.training.rates import steps_in
from fewstep.training.synthetic import default_captions, given_captions, synthetic_pictures


def distill(config: DistillConfig) -> Trained:
    """Distil config.model on config.data, or on pictures that it draws itself.

    Writes lora.safetensors (model/ with --full) to config.out.
    """
    return run(config, method_of(config))


def finetune(config: FinetuneConfig) -> Trained:
    """Fine-tune config.model on config.data. Writes lora.safetensors (model/ with --full) to config.out."""
    return run(config, Denoising)


def run(config: AdapterConfig, kind: type[Method]) -> Trained:
    """Train config.model with a method of this class."""
    check_folder(config)
    check_precision(config)
    material = material_of(config)
    method = kind(load_model(config.model, device=pick_device(config.device)), config)
    encoded, caption = material(method.model)
    config = config.model_copy(update={"train_steps": steps_in(config, len(encoded))})
    method = kind(method.model, config)
    train(method, latent_data(encoded, method.model, config), own=True)
    return trained(config, caption if method.model.takes_text else None)


def material_of(config: AdapterConfig) -> Callable[[Model], tuple[Encoded, str]]:
    """A function that encodes the training data for a model, and gives a caption of it too.

    Files are listed and read now, so that what is wrong with them is found before the model is loaded.
    """
    if isinstance(config, DistillConfig) and config.synthetic:
        given = given_captions(config)

        def drawings(model: Model) -> tuple[Encoded, str]:
            captions = default_captions(model) if given is None else given
            return synthetic_pictures(config, model, captions), captions[0]

        return drawings
    samples = training_samples(config)
    return lambda model: (encode(samples, model, training_size(model, config)), captions_of(samples)[0])


def train(method: Method, data: LatentData, own: bool = False) -> None:
    """Train with the method on encoded data. Writes the result to its config's `out`.

    own: whether the method's model belongs to the run. Otherwise it is as before afterwards, also after an error.
    """
    config = method.config
    recipe = method.recipe(len(data))
    with networks_of(method.model, config, method.with_teacher, own) as networks:
        players = method.players(networks)
        loop(players, data, config, lambda step: networks.export(config.out, after(recipe, step)))
