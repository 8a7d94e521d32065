"""The names that the original latent diffusion code ("LDM", "sgm") has for the modules of a diffusers UNet."""

from collections.abc import Iterable, Set
from itertools import count, takewhile

_OUTSIDE_BLOCKS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_INSIDE = {
    "resnets": {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    },
    "downsamplers": {"conv": "op"},
}  # attentions and upsamplers keep their names


def ldm_names(names: Iterable[str]) -> dict[str, str]:
    """Dotted module name in diffusers' UNet -> its name in the original layout, in the order of `names`.

    names: all modules of one UNet that own parameters. The number of resnets in each block, and the attentions and
    samplers next to them, decide the positions. A name without a place in the original layout is left out.
    """
    names = tuple(names)
    positions = _positions({name[:i] for name in names for i, letter in enumerate(name) if letter == "."})
    found = ((name, _OUTSIDE_BLOCKS.get(name) or _in_blocks(name, positions)) for name in names)
    return {name: original for name, original in found if original}


def _positions(parts: Set[str]) -> dict[str, str]:
    """Resnets, attentions and samplers -> their positions: up_blocks.1.attentions.0 -> output_blocks.3.1.

    parts: every beginning of a module name. Ignore the positions of parts that are not among them.
    """
    positions: dict[str, str] = {}
    inputs, outputs = count(1), count()  # input_blocks.0 is conv_in
    for block in _numbered("down_blocks", parts):
        for i, resnet in enumerate(_numbered(f"{block}.resnets", parts)):
            at = f"input_blocks.{next(inputs)}"
            positions |= {resnet: f"{at}.0", f"{block}.attentions.{i}": f"{at}.1"}
        if f"{block}.downsamplers.0" in parts:
            positions[f"{block}.downsamplers.0"] = f"input_blocks.{next(inputs)}.0"
    for i, resnet in enumerate(_numbered("mid_block.resnets", parts)):
        positions |= {resnet: f"middle_block.{2 * i}", f"mid_block.attentions.{i}": f"middle_block.{2 * i + 1}"}
    for block in _numbered("up_blocks", parts):
        for i, resnet in enumerate(_numbered(f"{block}.resnets", parts)):
            at, attention = f"output_blocks.{next(outputs)}", f"{block}.attentions.{i}"
            positions |= {resnet: f"{at}.0", attention: f"{at}.1"}
            positions[f"{block}.upsamplers.0"] = f"{at}.{2 if attention in parts else 1}"  # after the last resnet
    return positions


def _numbered(stem: str, parts: Set[str]) -> list[str]:
    return list(takewhile(parts.__contains__, (f"{stem}.{i}" for i in count())))


def _in_blocks(name: str, positions: dict[str, str]) -> str | None:
    words = name.split(".")
    depth = 3 if words[0] == "mid_block" else 4  # mid_block.resnets.0, down_blocks.0.resnets.0
    part, inner = ".".join(words[:depth]), ".".join(words[depth:])
    if part not in positions:
        return None
    kind = words[depth - 2]
    original = _INSIDE[kind].get(inner) if kind in _INSIDE else inner
    return f"{positions[part]}.{original}" if original else None
