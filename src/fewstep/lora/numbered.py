"""cloneofsimo's layout: modules have numbers, in the order in which its trainer visited them in the network.

The trainer (github.com/cloneofsimo/lora, lora_diffusion/lora.py) walks through the network. Inside every module of
certain classes it numbers the Linear layers, or the Linear layers and convolutions, from 0. The metadata of a
safetensors file names the classes (`unet`: ["CrossAttention", "Attention", "GEGLU"]). A .pt file is only the list
[up, down, up, ...].
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from fewstep.families import ModuleShape
from fewstep.lora.dialects import COMPONENTS, TEXT

EMBEDDING = "<embed>"  # the metadata's mark for a tensor that is the embedding of a word
ANY = ""  # the component of a bare list, which names none
NUMBERED = re.compile(rf"(|{'|'.join(COMPONENTS)}):[0-9]{{1,6}}")
CLASSES = {  # class of diffusers or transformers -> its place in the network
    "CrossAttention": r"attn[12]",  # until diffusers 0.14
    "Attention": r"attn[12]",
    "GEGLU": r"ff\.net\.0",
    "FeedForward": r"ff",
    "BasicTransformerBlock": r"transformer_blocks\.\d+",
    "Transformer2DModel": r"attentions\.\d+",
    "ResnetBlock2D": r"resnets\.\d+",
    "CLIPAttention": r"self_attn",
    "CLIPMLP": r"mlp",
    "CLIPEncoderLayer": r"encoder\.layers\.\d+",
}
DEFAULTS = (  # the classes that a trainer numbered, when the file does not name them
    {"CrossAttention", "Attention"},  # of the first trainer
    {"CrossAttention", "Attention", "GEGLU"},
    {"ResnetBlock2D", "CrossAttention", "Attention", "GEGLU"},  # of the extended trainer
    {"CLIPAttention"},
)
ORDER = (  # children of a module, in the order in which diffusers and transformers register them
    "conv_in time_embedding add_embedding down_blocks up_blocks mid_block attentions resnets downsamplers upsamplers"
    " conv_out proj_in transformer_blocks proj_out attn1 attn2 ff to_q to_k to_v to_out conv1 time_emb_proj conv2"
    " conv_shortcut linear_1 linear_2 text_model text_projection self_attn mlp k_proj v_proj q_proj out_proj fc1 fc2"
)
EARLIER_ORDER = ORDER.replace("attn1 attn2 ff", "attn1 ff attn2")  # until diffusers 0.11


def numbered_names(
    sizes: Mapping[str, ModuleShape], metadata: Mapping[str, str], shapes: Mapping[str, ModuleShape]
) -> dict[str, str]:
    """Numbered module -> its name in the network, for the components whose modules all fit in number and in size.

    sizes: of the file's modules, `unet:0` and so on, in any order. shapes: of the network's modules. A component
    whose numbers fit in no order, or in two, is left out; nothing is guessed.
    """
    found: dict[str, str] = {}
    for component in dict.fromkeys(module.partition(":")[0] for module in sizes):
        numbers = sorted((m for m in sizes if m.partition(":")[0] == component), key=lambda m: int(m.partition(":")[2]))
        sizes_in_order = [sizes[module] for module in numbers]
        fitting = {
            tuple(names)
            for part in ([component] if component != ANY else COMPONENTS)
            for names in candidates(part, targets_of(metadata.get(component)), shapes)
            if [shapes[name] for name in names] == sizes_in_order and len(set(names)) == len(names)
        }
        complete = [f"{component}:{i}" for i in range(len(numbers))] == numbers
        if complete and len(fitting) == 1:
            found |= dict(zip(numbers, fitting.pop(), strict=True))
    return found


def targets_of(classes: str | None) -> Sequence[set[str]]:
    """The sets of classes that the trainer may have numbered: the set in the metadata, else the defaults."""
    try:
        named = json.loads(classes or "")
    except (ValueError, RecursionError):
        return DEFAULTS
    known = isinstance(named, list) and bool(named) and all(isinstance(x, str) and x in CLASSES for x in named)
    return (set(named),) if known else DEFAULTS


def candidates(component: str, targets: Iterable[set[str]], shapes: Mapping[str, ModuleShape]) -> Iterator[list[str]]:
    """The lists of modules that the trainer may have numbered in one component, in its order of visit."""
    names = [name for name in shapes if component_of(name) == component]
    for order in (ORDER, EARLIER_ORDER):
        ordered = in_order(names, order)
        for classes in targets:
            whole = visited(ordered, classes)
            yield whole
            yield [name for name in whole if shapes[name].kernel == 0]


def component_of(name: str) -> str:
    """The component of a canonical module name."""
    return next((text.removesuffix(".") for text in TEXT if name.startswith(text)), "unet")


def in_order(names: Iterable[str], order: str = ORDER) -> list[str]:
    """The names in the order in which a network of diffusers or transformers lists its modules."""
    rank = {word: i for i, word in enumerate(order.split())}
    return sorted(names, key=lambda name: [int(w) if w.isdigit() else rank.get(w, -1) for w in name.split(".")])


def visited(names: Iterable[str], classes: Iterable[str]) -> list[str]:
    """The modules inside modules of these classes, outer ones first. A module inside two of them is listed twice.

    names: in the network's order.
    """
    inside = re.compile(rf"(^|.*\.)({'|'.join(sorted(CLASSES[name] for name in classes))})")
    groups: dict[str, list[str]] = {}
    for name in names:
        words = name.split(".")
        for parent in (".".join(words[:i]) for i in range(1, len(words))):
            if inside.fullmatch(parent):
                groups.setdefault(parent, []).append(name)
    return [name for group in groups.values() for name in group]
