"""What a run is trained on: images through the model's encoders, pictures that it draws, or a cache made before.

Training waits until all is encoded. Its order is one permutation of all samples, so the index must be whole before the
first step, and a run that is stopped and resumed, or that runs beside another, must not depend on what was encoded
when. Encoder and network would also share the same processor and memory, so that both at once would end no earlier.
Later runs begin at once.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from fewstep.configs import AdapterConfig, DistillConfig
from fewstep.configs.data import Selection
from fewstep.data.cache import INDEX, Encoded, captions_of, encode, facts_of, read_index
from fewstep.errors import UsageError, option
from fewstep.events import note
from fewstep.io import is_file
from fewstep.models.model import Model
from fewstep.training.adapt import framing_of, training_samples
from fewstep.training.synthetic import default_captions, given_captions, synthetic_pictures

C = TypeVar("C", bound=AdapterConfig)
FRAMING = {  # fields of the config: those of Framing
    "size": "size",
    "buckets": "buckets",
    "random_crops": "crops",
    "random_flip": "flip",
    "sample_latents": "deviations",
}
MUCH = 0.2  # share of the images' area that is cut away, from which a note speaks of it


class Material(NamedTuple):
    """Encoded training data."""

    encoded: Encoded
    captions: Sequence[str]  # of its samples, or of some of them; at least one


def cache_in(config: AdapterConfig) -> Encoded | None:
    """The cache made before that --data names; None if it names none. Raises UsageError for one that is damaged."""
    if config.data is None or not is_file(index := Path(config.data).expanduser() / INDEX):
        return None
    encoded = read_index(index)
    if encoded is None:
        raise UsageError(
            f"{option('data')} {config.data}: the cache is damaged, or not all of its files are there",
            "copy the whole folder again, or make it again with fewstep data encode",
        )
    return encoded


def with_its_framing(config: C) -> C:
    """The config with the size, shapes and views of the cache made before that --data names, if it names one.

    Raises UsageError if others, or a choice of images, are given.
    """
    encoded = cache_in(config)
    if encoded is None:
        return config
    if chosen := sorted(Selection.model_fields.keys() & config.model_fields_set):
        raise UsageError(
            f"{option(chosen[0])}: {config.data} is a cache, whose images were chosen when it was made",
            f"leave it out, or make the cache again with {option(chosen[0])}",
        )
    framing = json.loads(encoded.facts["framing"])
    values = {field: framing[name] for field, name in FRAMING.items()}
    for field in sorted(config.model_fields_set & values.keys()):
        if getattr(config, field) not in (values[field], type(config).model_fields[field].default):
            raise UsageError(
                f"{option(field)} {getattr(config, field)}: the cache in {config.data} was made with {values[field]}",
                f"leave it out, or make the cache again with {option(field)}",
            )
    return config.model_copy(update=values)


def material_of(config: AdapterConfig) -> Callable[[Model], Material]:
    """A function that gives the training data for a model.

    Files are listed and read now, so that what is wrong with them is found before the model is loaded.
    """
    if isinstance(config, DistillConfig) and config.synthetic:
        given = given_captions(config)

        def drawings(model: Model) -> Material:
            captions = default_captions(model) if given is None else given
            return Material(synthetic_pictures(config, model, captions), captions)

        return drawings
    if cache_in(config) is not None:
        return lambda model: made_before(config, model)
    samples = training_samples(config)

    def images(model: Model) -> Material:
        encoded = encode(samples, model, framing_of(model, config), workers=config.workers)
        if not config.buckets and float(encoded.facts["cut_away"]) > MUCH:
            note(
                f"squares leave out {float(encoded.facts['cut_away']):.0%} of the images' area; {option('buckets')}"
                " keeps their shapes"
            )
        return Material(encoded, captions_of(samples))

    return images


def made_before(config: AdapterConfig, model: Model) -> Material:
    """The data of the cache that --data names. Raises UsageError if another model made it."""
    encoded = cache_in(config)
    assert encoded is not None, "it was there just now"
    for fact, own in facts_of(model, framing_of(model, config)).items():
        if encoded.facts[fact] != own and fact != "framing":
            part = {"encoder": "autoencoder", "text": "text encoder"}.get(fact, "kind of network")
            raise UsageError(
                f"{option('data')} {config.data} was encoded by a model with another {part} than {config.model}",
                f"make it with fewstep data encode {option('model')} {config.model}",
            )
    return Material(encoded, json.loads(encoded.facts["captions"]))
