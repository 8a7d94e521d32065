"""The layouts of LoRA files in the wild: every key taken apart into a module and what the tensor is to it.

A layout is a way to spell a module and a way to spell a part; the two are independent in practice, so that one
table of each reads kohya's files, the original LCM-LoRA files, diffusers', PEFT's, both kinds of old attention
processors, `diffusion_model.` keys, and LyCORIS' LoCon, LoHa and LoKr. cloneofsimo's modules have numbers for names:
`fewstep.lora.numbered` knows whose they are.
"""

import re
from collections.abc import Iterable

from fewstep.errors import FewstepError
from fewstep.families.ldm import ldm_names
from fewstep.lora.foreign import is_whole, reason_against

PEFT_CONFIG = "adapter_config.json"  # what a folder that PEFT saved holds, beside one of the weights
PEFT_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
DOWN, UP, ALPHA = "down", "up", "alpha"
DORA_SCALE, MAGNITUDE = "dora_scale", "magnitude"  # the norms a DoRA gives to rows or columns; to rows, as PEFT does
LYCORIS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
           "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")  # fmt: skip
PARTS = {  # how a key ends: what the tensor is to its module
    ".lora_down.weight": DOWN,
    ".lora_up.weight": UP,
    ".lora_mid.weight": "mid",
    ".alpha": ALPHA,
    ".lora_A.weight": DOWN,
    ".lora_B.weight": UP,
    ".lora_A.default.weight": DOWN,
    ".lora_B.default.weight": UP,
    ".lora.down.weight": DOWN,
    ".lora.up.weight": UP,
    ".lora_linear_layer.down.weight": DOWN,
    ".lora_linear_layer.up.weight": UP,
    "_lora.down.weight": DOWN,  # attention processors: to_q_lora.down.weight
    "_lora.up.weight": UP,
    ":down": DOWN,  # cloneofsimo's
    ":up": UP,
    ".dora_scale": DORA_SCALE,
    ".lora_magnitude_vector": MAGNITUDE,
    ".lora_magnitude_vector.weight": MAGNITUDE,
    ".lora_magnitude_vector.default.weight": MAGNITUDE,
    **{f".{name}": name for name in LYCORIS},
    **{f".{name}.weight": name for name in LYCORIS},
}
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")  # parts of a model that LoRAs adapt
PREFIXES = {  # how a key begins: the part of the model
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lycoris_": "unet",
    "base_model.model.": "unet",
    "diffusion_model.": "unet",
    "model.diffusion_model.": "unet",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_h.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    **{f"{part}.": part for part in COMPONENTS},
    **{f"{part}.base_model.model.": part for part in COMPONENTS},  # as the published LCM-LoRA scripts write
    **{f"base_model.model.{part}.": part for part in COMPONENTS},
}
BUNDLED = re.compile(r"bundle_emb\.([^.]+)\..*", re.DOTALL)  # a word's embedding, beside the LoRA
TEXT = ("text_encoder.", "text_encoder_2.")
PROCESSORS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}  # in text encoders, once


def longest_of(words: Iterable[str]) -> re.Pattern[str]:
    """Matches the longest of these that a text begins with."""
    return re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))))


PREFIX, ENDING = longest_of(PREFIXES), longest_of(part[::-1] for part in PARTS)  # ENDING: of a key read backwards


def taken_apart(keys: Iterable[str], what: str) -> dict[str, dict[str, str]]:
    """Module as the file spells it -> part -> key. Raises FewstepError for a key that is no part of a LoRA.

    what: the file, for errors.
    """
    modules: dict[str, dict[str, str]] = {}
    for key in sorted(keys):
        found = ENDING.match(key[::-1])
        if found is None:
            raise unusable(key, what)
        ending = found[0][::-1]
        parts = modules.setdefault(key.removesuffix(ending), {})
        if PARTS[ending] in parts:
            raise FewstepError(f"LoRA {what} says the same twice: {key}", "get the file again from its source")
        parts[PARTS[ending]] = key
    return modules


def unusable(key: str, what: str) -> FewstepError:
    """Why a file with such a key is refused."""
    reason = reason_against(key) or ("it holds whole weights of modules, not factors" if is_whole(key) else None)
    if reason is not None:
        return FewstepError(f"LoRA {what} cannot be used: {reason} ({key})", "use a plain LoRA, LoHa or LoKr")
    return FewstepError(
        f"LoRA {what} has a key of no known layout: {key}", "see docs/lora-files.md for those there are"
    )


def bundled_word(key: str) -> str | None:
    """The word whose embedding a key of A1111 or OneTrainer holds beside a LoRA, or None."""
    found = BUNDLED.fullmatch(key)
    return found[1] if found else None


class Spellings:
    """Finds the module that a file means, whatever its layout, among the modules of one model or family.

    names: canonical ones: the UNet's bare, the text encoders' as text_encoder.text_model... A spelling is looked up
    with its dots flattened to underscores, as kohya writes it, in diffusers' names and in the original LDM names;
    all of one family are different, so that nothing is guessed.
    """

    def __init__(self, names: Iterable[str]) -> None:
        names = list(names)
        unet = [name for name in names if not name.startswith(TEXT)]
        self._canonical = {flat(f"unet.{old}"): name for name, old in ldm_names(unet).items()}
        self._canonical |= {flat(f"unet.{name}"): name for name in unet}
        self._canonical |= {flat(name): name for name in names if name.startswith(TEXT)}

    def find(self, spelled: str) -> str | None:
        """The canonical name of a module as a file spells it, or None."""
        prefix = prefix_of(spelled)
        part, body = PREFIXES.get(prefix, "unet"), spelled.removeprefix(prefix).replace(".processor.", ".")
        if part != "unet":
            start, _, last = body.rpartition(".")
            body = f"{start}.{PROCESSORS.get(last, last)}" if start else body
            return self._first(f"{part}.{body}", f"{part}.text_model.{body}")
        return self._first(f"unet.{body}", f"unet.{body}.0", f"text_encoder.{body}")

    def _first(self, *spellings: str) -> str | None:
        """The name of the first of these that there is; to_out.0 was once called to_out."""
        return next((self._canonical[flat(s)] for s in spellings if flat(s) in self._canonical), None)


def prefix_of(spelled: str) -> str:
    """The longest of PREFIXES that a module as a file spells it begins with, or nothing."""
    found = PREFIX.match(spelled)
    return found[0] if found else ""


def component_of(spelled: str) -> str:
    """The part of a model that a module as a file spells it is of: a key without a sign may be a text encoder's too."""
    prefix = prefix_of(spelled)
    part = PREFIXES.get(prefix, "unet")
    return "text_encoder" if part == "unet" and spelled.removeprefix(prefix).startswith("text_") else part


def is_text(spelled: str) -> bool:
    """Whether a module as a file spells it is a text encoder's, or may be one's."""
    return component_of(spelled) != "unet" or spelled.startswith(":")


def text_module(name: str) -> str:
    """A text encoder's module as checkpoints name it: transformers 5 no longer has the level text_model."""
    return name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}"


def module_name(component: str, name: str) -> str:
    """A component's module as updates name it: the UNet's bare, a text encoder's behind its component."""
    return f"{component}.{text_module(name)}" if component != "unet" else name


def flat(name: str) -> str:
    """A dotted name with underscores."""
    return name.replace(".", "_")
