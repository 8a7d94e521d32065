"""Rules for the config files of a model folder, checked before anything is built from them."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.errors import FewstepError
from fewstep.io import brief, read_object

AGAIN = "copy the whole model folder again, or correct the value"
LARGEST = 2**20  # limit of any width, count or vocabulary; no Stable Diffusion model comes near it
GREATEST = 1e38  # limit of any number; a larger one counts as infinity
LONGEST = 64  # limit of entries in a list, such as a list of blocks


class Rule(NamedTuple):
    """A condition on a value, and its words for messages."""

    words: str
    holds: Callable[[Any], bool]


def _whole(low: int, high: int = LARGEST) -> Rule:
    return Rule(f"a whole number from {low} to {high}", lambda x: type(x) is int and low <= x <= high)


def _number(words: str, holds: Callable[[float], bool] = lambda x: True) -> Rule:
    def is_one(x: Any) -> bool:
        return type(x) in (int, float) and -GREATEST < x < GREATEST and holds(x)

    return Rule(words, is_one)


def _each(rule: Rule, longest: int = LONGEST) -> Rule:
    """The rule for a value that follows `rule`, or is a list of such values, or a list of such lists."""

    def holds(x: Any) -> bool:
        return (0 < len(x) <= longest and all(map(holds, x))) if isinstance(x, list) else rule.holds(x)

    return Rule(f"{rule.words}, or a list of such", holds)


def _or_null(rule: Rule) -> Rule:
    return Rule(f"{rule.words}, or null", lambda x: x is None or rule.holds(x))


def _pair(rule: Rule) -> Rule:
    def holds(x: Any) -> bool:
        return (len(x) == 2 and all(map(rule.holds, x))) if isinstance(x, list) else rule.holds(x)

    return Rule(f"{rule.words}, or a list of height and width", holds)


_SIZE = _whole(1)
_FLAG = Rule("true or false", lambda x: isinstance(x, bool))
_WORD = Rule("a word", lambda x: isinstance(x, str))
_WORDS = Rule(
    "a list of words", lambda x: isinstance(x, list) and len(x) <= LONGEST and all(isinstance(word, str) for word in x)
)
_SHARE = _number("a number from 0 to 1", lambda x: 0 <= x <= 1)
_ABOVE = _number("a number above 0", lambda x: x > 0)
_BETAS = Rule(
    "a list of 2 to 10000 numbers from 0 to 1",
    lambda x: isinstance(x, list) and 2 <= len(x) <= 10_000 and all(map(_SHARE.holds, x)),
)
_PIXELS = Rule(
    "a number of pixels up to 8192, or a few such numbers with names",
    lambda x: all(map(_or_null(_whole(1, 8192)).holds, x.values() if isinstance(x, dict) else [x])),
)
_RULES = (  # for diffusers' and CLIP's configs; a name means the same in both
    (_SIZE, "in_channels out_channels latent_channels conditioning_channels conv_in_kernel conv_out_kernel"),
    (_SIZE, "hidden_size intermediate_size num_hidden_layers max_position_embeddings vocab_size projection_dim"),
    (_SIZE, "image_size patch_size num_channels addition_embed_type_num_heads"),
    (_or_null(_SIZE), "norm_num_groups time_embedding_dim addition_time_embed_dim num_class_embeds encoder_hid_dim"),
    (_or_null(_SIZE), "time_cond_proj_dim projection_class_embeddings_input_dim"),
    (_each(_SIZE), "block_out_channels layers_per_block cross_attention_dim"),
    (_each(_SIZE), "encoder_block_out_channels decoder_block_out_channels num_encoder_blocks num_decoder_blocks"),
    (_or_null(_each(_SIZE)), "attention_head_dim num_attention_heads conditioning_embedding_out_channels"),
    (_or_null(_each(_whole(0))), "transformer_layers_per_block reverse_transformer_layers_per_block"),
    (_or_null(_pair(_whole(1, 2**14))), "sample_size"),
    (_PIXELS, "size crop_size"),
    (_whole(0, 1), "downsample_padding"),
    (
        _or_null(_FLAG),
        "center_input_sample flip_sin_to_cos dual_cross_attention use_linear_projection upcast_attention",
    ),
    (_or_null(_FLAG), "resnet_skip_time_act class_embeddings_concat force_upcast use_quant_conv use_post_quant_conv"),
    (
        _or_null(_FLAG),
        "mid_block_add_attention rescale_betas_zero_snr force_zeros_for_empty_prompt global_pool_conditions",
    ),
    (_or_null(_FLAG), "clip_sample"),
    (_or_null(_each(_FLAG)), "only_cross_attention mid_block_only_cross_attention"),
    (_WORD, "act_fn hidden_act attention_type time_embedding_type resnet_time_scale_shift model_type"),
    (_WORD, "beta_schedule prediction_type _class_name"),
    (_or_null(_WORD), "mid_block_type class_embed_type addition_embed_type encoder_hid_dim_type cross_attention_norm"),
    (_or_null(_WORD), "time_embedding_act_fn timestep_post_act"),
    (_WORDS, "down_block_types up_block_types"),
    (_SHARE, "dropout attention_dropout beta_start beta_end"),
    (_number("a number"), "freq_shift"),
    (_or_null(_number("a number")), "shift_factor"),
    (_ABOVE, "clip_sample_range norm_eps layer_norm_eps scaling_factor mid_block_scale_factor resnet_out_scale_factor"),
    (_or_null(_whole(2, 10_000)), "num_train_timesteps"),
    (_or_null(_BETAS), "trained_betas"),
    (Rule("a whole number from 2", lambda x: type(x) is int and 2 <= x < GREATEST), "model_max_length"),
)
RULES = {key: rule for rule, keys in _RULES for key in keys.split()}


def checked_config(path: Path, what: str) -> dict[str, Any]:
    """The config in a file. Raises FewstepError that names the file, key and value of the first wrong entry.

    what: a name of the file, for the message. Keys without a rule are not checked here.
    """
    config = read_object(path, what)
    for key, value in _entries(config):
        if key in RULES and not RULES[key].holds(value):
            raise FewstepError(f"{path}: {key} is {brief(value)}, not {RULES[key].words}", AGAIN)
    return config


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """All entries of a config, with those of CLIP's two towers inside it."""
    for key, value in config.items():
        yield key, value
        if key in ("text_config", "vision_config") and isinstance(value, dict):
            yield from value.items()


def layers_of_config(config: Mapping[str, Any]) -> int:
    """A lower bound of the number of layers that a config asks for. Each layer has several tensors."""
    towers = [config, *(config[key] for key in ("text_config", "vision_config") if isinstance(config.get(key), dict))]
    most = max(tower.get("num_hidden_layers", 0) for tower in towers)
    blocks = len(_flat(config.get("block_out_channels", [])))
    tiny = sum(sum(_flat(config.get(key, []))) for key in ("num_encoder_blocks", "num_decoder_blocks"))
    resnets = _spread(config.get("layers_per_block", 1), blocks)
    transformers = _spread(config.get("transformer_layers_per_block") or 1, blocks)
    return int(most) + tiny + sum(n * (1 + depth) for n, depth in zip(resnets, transformers, strict=False))


def _flat(value: Any) -> list[int]:
    return [n for part in value for n in _flat(part)] if isinstance(value, list) else [value]


def _spread(value: Any, count: int) -> list[int]:
    """One number for each block: the largest, when a block has several."""
    return [max(_flat(part)) for part in value] if isinstance(value, list) else [value] * count
