"""Checks by their configs that the parts of a model fit each other, before anything runs."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.errors import FewstepError
from fewstep.io import brief

INPAINTING_CHANNELS = 9  # latents of 4 channels, a mask, and 4 channels of the kept latents
PIXEL_CHANNELS = 3  # of a model in pixel space
LARGEST = 8192  # pixels in a side of a picture


class Misfit(NamedTuple):
    """A config value that does not fit the other parts."""

    file: str  # its config file, relative to the model folder
    key: str
    value: Any
    expected: str


def check_parts(path: Path, parts: Mapping[str, Any]) -> None:
    """Raise FewstepError that names the file and the value when a part does not fit the model's other parts.

    parts: networks and tokenizers by the names of their folders, as in `Model`.
    """
    found = next((misfit for misfit in (*_of_vae(parts), *_of_unet(parts), *_of_text(parts))), None)
    if found is not None:
        raise FewstepError(
            f"{path / found.file}: {found.key} is {brief(found.value)}, but {found.expected}",
            "the parts come from several models, or fewstep cannot run this kind: copy the whole folder again",
        )


def _of_vae(parts: Mapping[str, Any]) -> Iterator[Misfit]:
    config = parts["vae"].config
    for key in ("in_channels", "out_channels"):
        if config[key] != 3:
            yield Misfit("vae/config.json", key, config[key], "pictures have 3")


def _of_unet(parts: Mapping[str, Any]) -> Iterator[Misfit]:
    """Misfits of the network with the autoencoder and the text encoders."""
    config, file = parts["unet"].config, "unet/config.json"
    latents = parts["vae"].config.latent_channels
    if config.in_channels != latents and (config.in_channels, latents) != (INPAINTING_CHANNELS, 4):
        expected = f"the autoencoder's latents have {latents} (with a mask and an image {2 * latents + 1})"
        yield Misfit(file, "in_channels", config.in_channels, expected)
    if config.out_channels != latents:
        yield Misfit(file, "out_channels", config.out_channels, f"the autoencoder's latents have {latents}")
    encoders = [parts[name] for name in ("text_encoder", "text_encoder_2") if name in parts]
    width = sum(encoder.config.hidden_size for encoder in encoders)
    key = "cross_attention_dim" if config.encoder_hid_dim is None else "encoder_hid_dim"
    widths = config[key] if isinstance(config[key], list | tuple) else [config[key]]
    if any(value != width for value in widths):
        yield Misfit(file, key, config[key], f"the text encoder gives {width}")
    for key, known in (
        ("class_embed_type", ()),
        ("num_class_embeds", ()),
        ("encoder_hid_dim_type", ("text_proj",)),
        ("addition_embed_type", ("text", "text_time") if len(encoders) == 2 else ("text",)),
    ):
        if config[key] is not None and config[key] not in known:
            yield Misfit(file, key, config[key], "fewstep has no such input for a network")
    if config.addition_embed_type == "text_time" and len(encoders) == 2:
        wide = 6 * (config.addition_time_embed_dim or 0) + encoders[1].config.projection_dim
        if config.projection_class_embeddings_input_dim != wide:
            key = "projection_class_embeddings_input_dim"
            yield Misfit(file, key, config[key], f"the second text encoder and six sizes give {wide}")
    largest = LARGEST // 2 ** (len(parts["vae"].config.block_out_channels) - 1)
    sides = config.sample_size if isinstance(config.sample_size, list | tuple) else [config.sample_size or 1]
    if max(sides) > largest:
        yield Misfit(file, "sample_size", config.sample_size, f"the largest is {largest}, {LARGEST} pixels")


def _of_text(parts: Mapping[str, Any]) -> Iterator[Misfit]:
    """Misfits of the tokenizers with their text encoders."""
    for name in ("text_encoder", "text_encoder_2"):
        if name in parts:
            last = max(parts[name.replace("text_encoder", "tokenizer")].get_vocab().values())
            config, file = parts[name].config, f"{name}/config.json"
            if last >= config.vocab_size:
                yield Misfit(file, "vocab_size", config.vocab_size, f"its tokenizer has a token {last}")
            if type(config.eos_token_id) is not int:
                yield Misfit(file, "eos_token_id", config.eos_token_id, "a text ends with a token")


def check_pixels(path: Path, config: Any) -> None:
    """Raise FewstepError for the config of a UNet2DModel whose inputs or outputs are not those of a picture alone.

    path: the config's file.
    """
    for key in ("in_channels", "out_channels"):
        if config[key] != PIXEL_CHANNELS:
            raise _unfit(path, key, config[key], f"pictures have {PIXEL_CHANNELS}")
    for key in ("class_embed_type", "num_class_embeds"):
        if config[key] is not None:
            raise _unfit(path, key, config[key], "fewstep has no such input for a network")
    if config.time_embedding_type != "positional":
        raise _unfit(path, "time_embedding_type", config.time_embedding_type, "fewstep's networks take timesteps")
    sides = config.sample_size if isinstance(config.sample_size, list | tuple) else [config.sample_size]
    if None in sides or max(sides) > LARGEST:
        raise _unfit(path, "sample_size", config.sample_size, f"it must be a number of pixels up to {LARGEST}")


def _unfit(path: Path, key: str, value: Any, expected: str) -> FewstepError:
    hint = "fewstep runs a UNet2DModel that takes a picture and a timestep: name the folder of one"
    return FewstepError(f"{path}: {key} is {brief(value)}, but {expected}", hint)


def check_control(name: str, config: Any, model: Any) -> None:
    """Raise FewstepError when the config of a ControlNet does not fit the model. name: as the user gave it."""
    unet, vae = model.unet.config, model.vae.config
    same = ("cross_attention_dim", "block_out_channels", "layers_per_block", "addition_embed_type")
    expected = {key: unet[key] for key in same} | {"conditioning_channels": 3, "in_channels": vae.latent_channels}
    for key, value in expected.items():
        if _plain(config[key]) != _plain(value):
            raise FewstepError(
                f"controlnet {name} does not fit the model: {key} is {config[key]}, not {value}",
                "use a ControlNet made for this model's family",
            )
    levels = len(config.conditioning_embedding_out_channels or ())
    if levels != len(vae.block_out_channels):
        raise FewstepError(
            f"controlnet {name} does not fit the model: conditioning_embedding_out_channels has {levels} levels, but"
            f" the autoencoder has {len(vae.block_out_channels)}",
            "use a ControlNet made for this model's family",
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
