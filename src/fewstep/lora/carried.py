"""What a LoRA file says of itself that still holds when its LoRA is written anew."""

import re
from collections.abc import Mapping, Sequence

from fewstep.lora.dialects import COMPONENTS
from fewstep.lora.numbered import EMBEDDING
from fewstep.lora.recipe import Recipe, naming_of

TRIGGER = "modelspec.trigger_phrase"
VERSION = "ss_base_model_version"
OF_ITS_TENSORS = re.compile(  # what is said of tensors as they lay in the old file, or by the writer of the new one
    r"format|fewstep\..*|lora_adapter_metadata|ss_network_.*|sshs_.*|modelspec\.hash_sha256"
    rf"|({'|'.join(COMPONENTS)})(:\d+:rank)?"  # cloneofsimo's: classes and ranks of numbered modules
)


def carried(sources: Sequence[Mapping[str, str]], recipe: Recipe) -> dict[str, str]:
    """Metadata of the files that a LoRA was made from, for the file it is written to.

    Of one file all that does not speak of its tensors: trigger words, tag frequencies, title, licence, how it was
    trained; its base version unless it is of another family than the recipe's. Of several, the trigger words.
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
    """The models that a base version is of: sd_v1, sd_v2, sdxl."""
    found = re.match(r"sdxl|sd_v[0-9]", version)
    return found[0] if found else version
