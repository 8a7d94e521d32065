"""The metadata of a LoRA file that stays true when its LoRA is written to a new file."""

import re
from collections.abc import Mapping, Sequence

from fewstep.lora.dialects import COMPONENTS
from fewstep.lora.numbered import EMBEDDING
from fewstep.lora.recipe import Recipe, naming_of

TRIGGER = "modelspec.trigger_phrase"
VERSION = "ss_base_model_version"
OF_ITS_TENSORS = re.compile(  # describes the tensors of the old file, or is written by the writer of the new one
    r"format|fewstep\..*|lora_adapter_metadata|ss_network_.*|sshs_.*|modelspec\.hash_sha256"
    rf"|({'|'.join(COMPONENTS)})(:\d+:rank)?"  # cloneofsimo: classes and ranks of numbered modules
)


def carried(sources: Sequence[Mapping[str, str]], recipe: Recipe) -> dict[str, str]:
    """Metadata for a new LoRA file, from the files that its LoRA was made from.

    One file gives everything that does not describe its tensors: trigger words, tag frequencies, title, licence,
    how it was trained. It does not give its base version if that belongs to another family than the recipe's. Several
    files give only their trigger words.
    """
    if len(sources) != 1:
        words = dict.fromkeys(source[TRIGGER] for source in sources if source.get(TRIGGER))
        return {TRIGGER: ", ".join(words)} if words else {}
    (source,) = sources
    own = naming_of(recipe)
    same = not own or line(source.get(VERSION, "")) == line(own[VERSION])
    return {
        key: value
        for key, value in source.items()
        if value != EMBEDDING and not OF_ITS_TENSORS.fullmatch(key) and (same or key not in own)
    }


def line(version: str) -> str:
    """The line of models that a base version belongs to: sd_v1, sd_v2 or sdxl."""
    found = re.match(r"sdxl|sd_v[0-9]", version)
    return found[0] if found else version
