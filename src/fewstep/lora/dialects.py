"""The layouts of published LoRA files: how a key splits into a module and a part of that module (A, B, alpha ...).

A layout is a way to spell modules and a way to spell parts. In practice the two are independent, so one table of each
reads the files of kohya, of the original LCM-LoRA, of diffusers, of PEFT, both kinds of old attention processors,
`diffusion_model.` keys, and LyCORIS' LoCon, LoHa and LoKr. cloneofsimo's files have numbers in place of module names;
`fewstep.lora.numbered` finds their names.
"""

import re
from collections.abc import Iterable

from fewstep.errors import FewstepError
from fewstep.families.ldm import ldm_names
from fewstep.lora.foreign import is_whole, reason_against

PEFT_CONFIG = "adapter_config.json"  # a folder that PEFT saved holds it and one of PEFT_WEIGHTS
PEFT_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
DOWN, UP, ALPHA = "down", "up", "alpha"
DORA_SCALE, MAGNITUDE = "dora_scale", "magnitude"  # the norms of a DoRA, of rows or columns; of rows, in PEFT's files
LYCORIS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
           "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")  # fmt: skip
PARTS = {  # end of a key -> the part of its module that the tensor is
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
    ":down": DOWN,  # cloneofsimo
    ":up": UP,
    ".dora_scale": DORA_SCALE,
    ".lora_magnitude_vector": MAGNITUDE,
    ".lora_magnitude_vector.weight": MAGNITUDE,
    ".lora_magnitude_vector.default.weight": MAGNITUDE,
    **{f".{name}": name for name in LYCORIS},
    **{f".{name}.weight": name for name in LYCORIS},
}
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")  # networks of a model that LoRAs adapt
PREFIXES = {  # beginning of a key -> the component of the model
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
    **{f"{part}.base_model.model.": part for part in COMPONENTS},  # the published LCM-LoRA scripts write these
    **{f"base_model.model.{part}.": part for part in COMPONENTS},
}
BUNDLED = re.compile(r"bundle_emb\.([^.]+)\..*", re.DOTALL)  # the embedding of a word, saved together with the LoRA
TEXT = ("text_encoder.", "text_encoder_2.")
PROCESSORS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}  # old names in text encoders


def longest_of(words: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches the longest of these words at the beginning of a text."""
    return re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))))


PREFIX, ENDING = longest_of(PREFIXES), longest_of(part[::-1] for part in PARTS)  # ENDING matches a reversed key


def taken_apart(keys: Iterable[str], what: str) -> dict[str, dict[str, str]]:
    """Module as the file spells it -> part -> key. Raises FewstepError for a key that is not part of a LoRA.

    what: the file's name, for errors.
    """
    modules: dict[str, dict[str, str]] = {}
    for key in sorted(keys):
        found = ENDING.match(key[::-1])
        if found is None:
            raise unusable(key, what)
        ending = found[0][::-1]
        parts = modules.setdefault(key.removesuffix(ending), {})
        if PARTS[ending] in parts:
            raise FewstepError(f"LoRA {what} holds the same tensor twice: {key}", "get the file again from its source")
        parts[PARTS[ending]] = key
    return modules


def unusable(key: str, what: str) -> FewstepError:
    """The error for a file with a key that cannot be used."""
    reason = reason_against(key) or ("it holds whole weights of modules, not factors" if is_whole(key) else None)
    if reason is not None:
        return FewstepError(f"LoRA {what} cannot be used: {reason} ({key})", "use a plain LoRA, LoHa or LoKr")
    return FewstepError(
        f"LoRA {what} has a key of an unknown layout: {key}", "docs/lora-files.md lists the known layouts"
    )


def bundled_word(key: str) -> str | None:
    """The word whose embedding this key holds, in a LoRA file of A1111 or OneTrainer; None for other keys."""
    found = BUNDLED.fullmatch(key)
    return found[1] if found else None


class Spellings:
    """Finds the module that a file means, in any layout, among the modules of one model or family.

    names: canonical names. The UNet's have no prefix; the text encoders' begin with text_encoder.text_model... A
    spelling is looked up with underscores in place of dots, as kohya writes it, among diffusers' names and the
    original LDM names. All of these differ within one family, so nothing is guessed.
    """

    def __init__(self, names: Iterable[str]) -> None:
        names = list(names)
        unet = [name for name in names if not name.startswith(TEXT)]
        self._canonical = {flat(f"unet.{old}"): name for name, old in ldm_names(unet).items()}
        self._canonical |= {flat(f"unet.{name}"): name for name in unet}
        self._canonical |= {flat(name): name for name in names if name.startswith(TEXT)}

    def find(self, spelled: str) -> str | None:
        """The canonical name of a module, from its spelling in a file; None when there is none."""
        prefix = prefix_of(spelled)
        part, body = PREFIXES.get(prefix, "unet"), spelled.removeprefix(prefix).replace(".processor.", ".")
        if part != "unet":
            start, _, last = body.rpartition(".")
            body = f"{start}.{PROCESSORS.get(last, last)}" if start else body
            return self._first(f"{part}.{body}", f"{part}.text_model.{body}")
        return self._first(f"unet.{body}", f"unet.{body}.0", f"text_encoder.{body}")

    def _first(self, *spellings: str) -> str | None:
        """The canonical name of the first spelling that is known. Old files call to_out.0 to_out."""
        return next((self._canonical[flat(s)] for s in spellings if flat(s) in self._canonical), None)


def prefix_of(spelled: str) -> str:
    """The longest of PREFIXES that the file's spelling of a module begins with; "" when there is none."""
    found = PREFIX.match(spelled)
    return found[0] if found else ""


def component_of(spelled: str) -> str:
    """The component of a model that a module, spelled as in a file, belongs to.

    A spelling without a prefix may belong to a text encoder too.
    """
    prefix = prefix_of(spelled)
    part = PREFIXES.get(prefix, "unet")
    return "text_encoder" if part == "unet" and spelled.removeprefix(prefix).startswith("text_") else part


def is_text(spelled: str) -> bool:
    """Whether a module, spelled as in a file, belongs or may belong to a text encoder."""
    return component_of(spelled) != "unet" or spelled.startswith(":")


def text_module(name: str) -> str:
    """The name in checkpoints of a text encoder's module. transformers 5 leaves out the level text_model."""
    return name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}"


def module_name(component: str, name: str) -> str:
    """The name in updates of a component's module: with the component as prefix, except for the UNet."""
    return f"{component}.{text_module(name)}" if component != "unet" else name


def flat(name: str) -> str:
    """A dotted name with underscores in place of dots."""
    return name.replace(".", "_")
