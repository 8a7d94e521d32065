"""The name of a LoRA file's layout, from the beginnings and ends of its keys."""

from collections.abc import Mapping

from fewstep.lora.dialects import DOWN, prefix_of
from fewstep.lora.dialects import PREFIXES as ALL
from fewstep.lora.dora import magnitude_of

Spelled = Mapping[str, Mapping[str, str]]  # module as the file spells it -> part -> key

KOHYA, PEFT, OLD, BARE = "kohya", "PEFT", "diffusers (old)", "bare"
PROCESSORS, CLONEOFSIMO = "attention processors", "cloneofsimo"
PREFIXES = {  # beginning of a key -> the tool that spells modules so; another prefix is its own name
    "lora_unet_": KOHYA,
    "lora_te_": KOHYA,
    "lora_te1_": KOHYA,
    "lora_te2_": KOHYA,
    "unet.": "diffusers",
    "text_encoder.": "diffusers",
    "text_encoder_2.": "diffusers",
    "base_model.model.": PEFT,
    "lycoris_": "LyCORIS",
    **{prefix: PEFT for prefix in ALL if "base_model.model." in prefix},
    **{prefix: "ComfyUI" for prefix in ALL if prefix.startswith("text_encoders.")},
    "diffusion_model.": "diffusion_model",
    "model.diffusion_model.": "diffusion_model",
    "": BARE,
}
SUFFIXES = {  # end of a key -> the tool that spells parts so
    ".lora_down.weight": KOHYA,
    ".lora_A.weight": PEFT,
    ".lora_A.default.weight": PEFT,
    ".lora.down.weight": OLD,
    ".lora_linear_layer.down.weight": OLD,
    "_lora.down.weight": PROCESSORS,
    ":down": CLONEOFSIMO,
}
USUAL = {  # (beginning, end) -> the layout's name
    (KOHYA, KOHYA): KOHYA,
    ("diffusers", PEFT): "diffusers",
    ("diffusers", OLD): OLD,
    (BARE, OLD): OLD,
    (PEFT, PEFT): PEFT,
    ("LyCORIS", KOHYA): "LyCORIS",
    (BARE, PEFT): PEFT,
    ("diffusion_model", PEFT): "diffusion_model",
    ("diffusion_model", KOHYA): "diffusion_model",
}
KINDS = {"mid": "LyCORIS (LoCon)", "hada_w1_a": "LyCORIS (LoHa)", "lokr_": "LyCORIS (LoKr)"}  # by beginning of a part


def layout_of(spelled: Spelled) -> str:
    """The name of the layout of a file with these modules. A mixed file has several names, the most frequent first."""
    counts: dict[str, int] = {}
    for module, keys in spelled.items():
        label = label_of(module, keys)
        counts[label] = counts.get(label, 0) + 1
    labels = sorted(counts, key=lambda label: -counts[label])
    dora = any(magnitude_of(keys) is not None for keys in spelled.values())
    return ", ".join(labels + ["DoRA"] * dora)


def label_of(module: str, keys: Mapping[str, str]) -> str:
    """The name of one module's layout. It has two parts when no usual layout has this beginning and this end."""
    kind = next((kind for sign, kind in KINDS.items() if any(part.startswith(sign) for part in keys)), None)
    if kind is not None:
        return kind
    prefix, suffix = prefix_of(module), keys.get(DOWN, module).removeprefix(module)
    beginning, ending = PREFIXES.get(prefix, prefix.rstrip("._")), SUFFIXES.get(suffix, "incomplete")
    if ending in (PROCESSORS, CLONEOFSIMO):
        return ending
    return USUAL.get((beginning, ending), f"{beginning} names, {ending} factors")
