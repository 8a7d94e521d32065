"""The model that a LoRA was made for. Its modules alone prove little: all of SSD-1B's are in SDXL too."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from fewstep.errors import FewstepError
from fewstep.events import note
from fewstep.families import FAMILIES, ModuleShape, family_of
from fewstep.lora.blocks import blocks_of
from fewstep.lora.files import LoraFile
from fewstep.lora.low_rank import Adapter, check_fits
from fewstep.lora.recipe import Recipe

COMMON = ("sd15", "sdxl", "sd21", "ssd-1b", "emoji")  # families, the most common first


def check_made_for(
    adapter: Adapter,
    recipe: Recipe | None,
    shapes: Mapping[str, ModuleShape],
    lora: str,
    model: str,
    prediction_type: str | None = None,
) -> None:
    """Raise FewstepError unless the model has every module of the LoRA, and the recipe is for the model's family.

    Notes give other reasons for doubt. shapes: shapes of the model's modules. prediction_type: of the model; None = not
    known.
    """
    check_fits(adapter, shapes, lora, model)
    family = family_of(shapes)
    if other := other_family(recipe, family):
        raise FewstepError(
            f"LoRA {lora} was made for {other}, and {model} is {family}",
            f"use a LoRA made for {family}; to use this one anyway: fewstep merge FILE --model MODEL --out NEW",
        )
    note_doubts(adapter, recipe, shapes, lora, model, prediction_type)


def other_family(recipe: Recipe | None, family: str) -> str | None:
    """The recipe's family, if it differs from the model's; None if they are equal or one is not known."""
    named = recipe.family if recipe else "custom"
    return named if named in FAMILIES and family in FAMILIES and named != family else None


def note_doubts(
    adapter: Adapter,
    recipe: Recipe | None,
    shapes: Mapping[str, ModuleShape],
    lora: str,
    model: str,
    prediction_type: str | None = None,
) -> None:
    """Note a recipe for another prediction type. For a LoRA without a recipe, note the modules it leaves unchanged."""
    if recipe and recipe.accelerates and prediction_type not in (None, recipe.prediction_type):
        note(
            f"LoRA {lora} was made for models of prediction type {recipe.prediction_type}, but {model} has"
            f" {prediction_type}: pictures in few steps will be poor"
        )
    if recipe is None or recipe.recognised_by:
        left = untouched(adapter.modules, shapes)
        if left:
            blocks = Counter((*blocks_of(name), "other")[0] for name in left)
            total = len(left) + len(adapter.modules)
            whole = [name for name in whole_of(adapter.modules) if name != family_of(shapes)]
            note(
                f"LoRA {lora} leaves {len(left)} of the {total} modules of its kinds in {model} unchanged:"
                f" {', '.join(f'{count} in {block}' for block, count in blocks.items())}"
                + (f"; it changes all of them in {' and '.join(whole)}, and may be made for that" if whole else "")
            )


def untouched(names: Iterable[str], shapes: Mapping[str, ModuleShape]) -> list[str]:
    """The model's modules that are of the same kinds as `names` but are not among them."""
    names = set(names)
    kinds = set(map(kind_of, names))
    return [name for name in shapes if name not in names and kind_of(name) in kinds]


def kind_of(name: str) -> str:
    """The kind of a module, without its position: attentions.transformer_blocks.attn1.to_q."""
    return re.sub(r"^(down_blocks|mid_block|up_blocks)\.", "", re.sub(r"\.\d+", "", name))


def whole_of(names: Iterable[str]) -> list[str]:
    """The families that have all these modules, and no others of the same kinds."""
    names = set(names)
    tables = {name: family.all_modules() for name, family in FAMILIES.items()}
    return [name for name, table in tables.items() if names <= table.keys() and not untouched(names, table)]


def origin_of(fitting: Sequence[str], files: Sequence[tuple[LoraFile, Collection[str]]]) -> tuple[str, str]:
    """The family that these LoRAs were made for, when several families fit, and the reason in words.

    fitting: the families that fit, at least one. files: each LoRA with its modules' names in these families.
    """
    for file, _ in files:
        if file.recipe is not None and file.recipe.family in fitting:
            return file.recipe.family, "its recipe says so"
        if (family_named := family_in(file.source.metadata)) in fitting:
            return str(family_named), "its metadata says so"
    spelled = [name for file, _ in files for name in file.spelled]
    for prefixes, encoders in ((("lora_te_",), 1), (("lora_te1_", "lora_te2_"), 2)):
        if any(name.startswith(prefixes) for name in spelled):
            fitting = [name for name in fitting if len(FAMILIES[name].text_encoders) == encoders] or fitting
    for _, names in files:
        whole = [family for family in fitting if family in whole_of(names)]
        if len(whole) == 1:
            return whole[0], "it has no other modules of these kinds"
    return min(fitting, key=COMMON.index), "it is the most common"


def family_in(metadata: Mapping[str, str]) -> str | None:
    """The family that a file's metadata names, as sd-scripts writes it; None when it names none."""
    version = metadata.get("ss_base_model_version", "")
    architecture = metadata.get("modelspec.architecture", "").partition("/")[0]
    for name, family in FAMILIES.items():
        names = family.naming
        if names and (version in {names.version, names.v_version} - {""}):
            return name
        if names and (architecture in {names.architecture, names.v_architecture} - {""}):
            return name
    return "sdxl" if version.startswith("sdxl_") else None
