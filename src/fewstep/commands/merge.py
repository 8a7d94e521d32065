"""LoRA arithmetic from the command line: merge, resize and difference. It is exact unless a rank is requested."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from fewstep.commands.result import Result
from fewstep.configs import AdapterOutput, DifferenceConfig, MergeConfig, ResizeConfig
from fewstep.errors import FewstepError, UsageError, number_of, option, printable
from fewstep.events import doing, note
from fewstep.families import family_of
from fewstep.io import atomic_folder, write_json
from fewstep.lora.carried import carried
from fewstep.lora.compress import RankLoss, compress
from fewstep.lora.dialects import PEFT_CONFIG
from fewstep.lora.difference import difference as difference_of
from fewstep.lora.files import hash_of
from fewstep.lora.low_rank import Adapter, LowRank, combine, size_of, widest
from fewstep.lora.recipe import KEY, Recipe
from fewstep.lora.writing import save_adapter
from fewstep.models.fold import fold_on_disk
from fewstep.models.licences import joined, licences_of
from fewstep.models.load import DTYPES, RECIPE_FILE, model_recipe
from fewstep.models.references import parse_reference
from fewstep.models.sums import Fitted, facts_of, fit, merged_recipe, sources_of, tell_loss
from fewstep.models.weights import model_path, stored_types, weights_of

SUFFIX = ".safetensors"
MEANINGS = {  # explanations of the figures for a loss
    "energy": "the share kept of ||change of the weights||^2, all modules together",
    "mean_error": "||change - kept|| / ||change|| of a module, mean over the modules",
    "worst_error": "the largest of these",
}


def merge(config: MergeConfig) -> Result:
    """Write the linear combination of the LoRAs, or a model with it folded in. The result describes the file."""
    check_out(config, config.into is not None)
    fitted = fit([parse_reference(text) for text in config.files], config.into or config.model, config.allow_partial)
    modules = combine([(term.reference.weight_of, term.adapter) for term in fitted.terms])
    if config.into:
        lost = fold(config, model_path(config.into), modules, fitted)
        tell_loss(lost)
        about = {"out": str(config.out), "into": config.into, "lost_in_rounding": round(max([0.0, *lost.values()]), 4)}
        return written({**about, **facts_of(fitted)}, None)
    if config.rank is None and config.energy is None:
        check_ranks(modules, config.max_rank)
    return write_sum(config, modules, fitted)


def fold(
    config: MergeConfig, model: Path, modules: Mapping[str, LowRank], fitted: Fitted
) -> Mapping[torch.dtype, float]:
    """Write the model with the sum in it to config.out. Returns what rounding loses.

    A sum that makes it a few-step model gives it its recipe, so that it is sampled as with the LoRAs beside it.
    """
    notes, recipe = sources_of(fitted, licences_of(str(config.into))), merged_recipe(fitted)
    own = model_recipe(model) if model.is_dir() else None
    if not recipe.accelerates or (own is not None and own.accelerates):
        return fold_on_disk(model, config.out, modules, notes)
    notes[KEY] = recipe.model_dump_json()
    if model.is_file():
        return fold_on_disk(model, config.out, modules, notes)
    with atomic_folder(config.out) as folder:
        lost = fold_on_disk(model, folder, modules, notes)
        write_json(folder / RECIPE_FILE, recipe.model_dump(mode="json"))
    return lost


def check_out(config: AdapterOutput, model: bool = False) -> None:
    """Raise UsageError if --out exists and must not be replaced.

    With --overwrite a file may be replaced, and a PEFT folder by another one. model: whether a model is written.
    """
    folder = config.dialect == "peft" and not model
    replaceable = (config.out / PEFT_CONFIG).is_file() if folder else config.out.is_file()
    if config.out.exists() and not (config.overwrite and replaceable):
        replace = f", or add {option('overwrite')}" if replaceable else ""
        hint = f"choose another {option('out')}{replace}"
        raise UsageError(f"{option('out')} {config.out} already exists", hint)


def check_ranks(modules: Mapping[str, LowRank], most: int) -> None:
    """Raise FewstepError if some module's exact sum needs a rank above `most`."""
    for name in modules:
        rank = size_of(modules, name).rank
        if rank > most:
            raise FewstepError(
                f"the exact sum has rank {rank} in {name}, more than {option('max_rank')} {most}",
                f"cut it with {option('rank')} 64 or {option('energy')} 0.99, fold it with {option('into')} MODEL, or"
                f" raise {option('max_rank')}",
            )


def resize(config: ResizeConfig) -> Result:
    """Write one LoRA at a lower rank. The result describes the file and the loss."""
    if config.rank is None and config.energy is None:
        raise UsageError(
            f"neither {option('rank')} nor {option('energy')} was given",
            f"add one of them, such as {option('rank')} 8 or {option('energy')} 0.95",
        )
    check_out(config)
    fitted = fit([parse_reference(text) for text in config.files], config.model, config.allow_partial)
    return write_sum(config, combine([(1.0, term.adapter) for term in fitted.terms]), fitted)


def difference(config: DifferenceConfig) -> Result:
    """Write the LoRA that turns the second model into the first. The result describes the file."""
    check_out(config)
    (tuned, shapes), (base, base_shapes) = map(weights_of, config.files)
    if shapes != base_shapes:
        raise FewstepError(
            f"{config.files[0]} and {config.files[1]} are of different families", "name two models of the same family"
        )

    modules, loss = difference_of(tuned, base, shapes, rank=config.rank, energy=config.energy)
    if not modules:
        raise FewstepError(f"{config.files[0]} and {config.files[1]} have the same weights", "nothing was written")
    family = family_of(shapes)
    recipe = Recipe(method="denoising", family=family, base_model=config.files[1])
    licences = joined(*map(licences_of, config.files))
    dtype = dtype_of(config, set().union(*map(stored_types, config.files)))
    save(config, Adapter(modules, licences), recipe, dtype)
    facts = {"family": family, "tuned": config.files[0], "base": config.files[1], **licences}
    return written({**about(config.out, modules, dtype), **facts}, loss)


def write_sum(config: AdapterOutput, modules: Mapping[str, LowRank], fitted: Fitted) -> Result:
    """Write the sum, cut to a rank if the config requests it. The result describes the file."""
    loss = None
    if config.rank is not None or config.energy is not None:
        modules, loss = compress(modules, config.rank, config.energy)
    dtype = dtype_of(config, [term.file.dtype for term in fitted.terms])
    recipe = merged_recipe(fitted)
    kept = carried([term.adapter.metadata for term in fitted.terms], recipe)
    save(config, Adapter(modules, kept | sources_of(fitted)), recipe, dtype)
    return written({**about(config.out, modules, dtype), **facts_of(fitted)}, loss)


def dtype_of(config: AdapterOutput, inputs: Iterable[torch.dtype]) -> torch.dtype:
    """The type of a LoRA to write: the requested one, or the widest type of its inputs."""
    return widest(inputs) if config.dtype == "auto" else DTYPES[config.dtype]


@doing("writing the LoRA")
def save(config: AdapterOutput, adapter: Adapter, recipe: Recipe, dtype: torch.dtype) -> None:
    """Write the adapter with its metadata, in the config's format."""
    save_adapter(config.out, adapter, recipe, dtype, config.dialect, adapter.metadata)
    if config.out.is_file() and config.out.suffix != SUFFIX:
        note(f"other programs find a LoRA by the ending {SUFFIX}, which {config.out} lacks")


def about(out: Path, modules: Mapping[str, LowRank], dtype: torch.dtype) -> dict[str, Any]:
    """Facts about a file that was written."""
    ranks = [size_of(modules, name).rank for name in modules]
    name = next(name for name, known in DTYPES.items() if known == dtype)
    return {
        "out": str(out), "modules": len(ranks), "rank": max(ranks, default=0), "dtype": name, "sha256": hash_of(out)
    }  # fmt: skip


def written(facts: Mapping[str, Any], loss: RankLoss | None) -> Result:
    """The result: facts about the file, and the loss of cutting the ranks."""
    if loss is not None:
        lost = {"energy": loss.energy, "mean_error": loss.mean, "worst_error": loss.worst}
        facts = {**facts, **lost, "worst_module": loss.worst_module}
    lines = [
        f"{name.replace('_', ' '):<12}  {in_words(item)}" + (f"  ({MEANINGS[name]})" if name in MEANINGS else "")
        for name, value in facts.items()
        for item in (value if isinstance(value, list) else [value])
    ]
    return Result(facts, "\n".join(lines))


def in_words(value: Any) -> str:
    """A fact as text for people."""
    if isinstance(value, dict):
        value = f"{value['weight']:g} x {value['file']}, {number_of(value['modules'], 'module')}"
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))
