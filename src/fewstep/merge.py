"""LoRA arithmetic from the command line: merge, resize and difference, exactly unless a rank is asked for."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fewstep.configs import AdapterOutput, DifferenceConfig, MergeConfig, ResizeConfig
from fewstep.errors import FewstepError, UsageError, printable
from fewstep.events import doing, note
from fewstep.families import FAMILIES, ModuleShape, family_of
from fewstep.lora.carried import carried
from fewstep.lora.compress import Loss, compress
from fewstep.lora.dialects import PEFT_CONFIG
from fewstep.lora.difference import difference
from fewstep.lora.files import Base, LoraFile, hash_of, open_lora
from fewstep.lora.fitting import origin_of, other_family
from fewstep.lora.low_rank import Adapter, LowRank, check_fits, combine, misfits, size_of, widest
from fewstep.lora.recipe import Recipe
from fewstep.lora.references import Reference, parse_reference
from fewstep.lora.rounding import loss_note
from fewstep.lora.writing import save_adapter
from fewstep.models.fold import fold_on_disk
from fewstep.models.licences import joined, licences_named, licences_of, told_by
from fewstep.models.load import DTYPES
from fewstep.models.weights import base_name, model_path, stored_types, weights_of

MEANINGS = {  # of what is printed where something is lost
    "energy": "the share kept of ||change of the weights||^2, all modules together",
    "mean_error": "||change - kept|| / ||change|| of a module, mean over the modules",
    "worst_error": "the largest of these",
}


class Term(NamedTuple):
    """One LoRA of a sum."""

    reference: Reference
    file: LoraFile
    adapter: Adapter

    @property
    def recipe(self) -> Recipe | None:
        """How it wants to be sampled."""
        return self.file.recipe


class Fitted(NamedTuple):
    """LoRAs whose modules all have their place in one model."""

    terms: tuple[Term, ...]
    family: str
    model: str | None  # that was named, whose weights DoRAs are baked against


def run(config: MergeConfig) -> None:
    """Write the linear combination of the LoRAs, or a model with it folded in; what was done goes to stdout."""
    check_out(config, config.into is not None)
    fitted = fit([parse_reference(text) for text in config.files], config.into or config.model, config.allow_partial)
    modules = combine([(term.reference.weight_of, term.adapter) for term in fitted.terms])
    if config.into:
        notes = sources_of(fitted, licences_of(config.into))
        lost = fold_on_disk(model_path(config.into), config.out, modules, notes)
        tell_loss(lost)
        about = {"out": str(config.out), "into": config.into, "lost_in_rounding": round(max([0.0, *lost.values()]), 4)}
        tell(config, {**about, **told_of(fitted)}, None)
        return
    if config.rank is None and config.energy is None:
        check_ranks(modules, config.max_rank)
    write_sum(config, modules, fitted)


def tell_loss(lost: Mapping[torch.dtype, float]) -> None:
    """Say it when the model's type loses much of the LoRAs."""
    if text := loss_note(lost, "fold them into a float32 copy of the model, or plug them in by sample --live-lora"):
        note(text)


def check_out(config: AdapterOutput, model: bool = False) -> None:
    """Raise UsageError where something is at --out that is not to be replaced.

    A file is, and a PEFT folder by another, if --overwrite says so. model: whether a model is written.
    """
    folder = config.dialect == "peft" and not model
    replaceable = (config.out / PEFT_CONFIG).is_file() if folder else config.out.is_file()
    if config.out.exists() and not (config.overwrite and replaceable):
        hint = f"choose another --out{', or give --overwrite' if replaceable else ''}"
        raise UsageError(f"--out {config.out} is already there", hint)


def check_ranks(modules: Mapping[str, LowRank], most: int) -> None:
    """Raise FewstepError for a sum that is exact only at a rank above `most`, in some module."""
    for name in modules:
        rank = size_of(modules, name).rank
        if rank > most:
            raise FewstepError(
                f"the exact sum has rank {rank} in {name}, more than --max-rank {most}",
                "cut it with --rank 64 or --energy 0.99, fold it with --into MODEL, or raise --max-rank",
            )


def run_resize(config: ResizeConfig) -> None:
    """Write one LoRA again at a lower rank, and say what that loses."""
    if config.rank is None and config.energy is None:
        raise UsageError("neither --rank nor --energy was given", "say how small: --rank 8, or --energy 0.95")
    check_out(config)
    fitted = fit([parse_reference(text) for text in config.files], config.model, config.allow_partial)
    write_sum(config, combine([(1.0, term.adapter) for term in fitted.terms]), fitted)


def run_difference(config: DifferenceConfig) -> None:
    """Write the LoRA that turns the second model into the first."""
    check_out(config)
    (tuned, shapes), (base, base_shapes) = map(weights_of, config.files)
    if shapes != base_shapes:
        raise FewstepError(
            f"{config.files[0]} and {config.files[1]} are of different families", "compare like with like"
        )

    modules, loss = difference(tuned, base, shapes, rank=config.rank, energy=config.energy)
    if not modules:
        raise FewstepError(f"{config.files[0]} and {config.files[1]} have the same weights", "nothing was written")
    family = family_of(shapes)
    recipe = Recipe(method="denoising", family=family, base_model=config.files[1])
    licences = joined(*map(licences_of, config.files))
    dtype = dtype_of(config, set().union(*map(stored_types, config.files)))
    save(config, Adapter(modules, licences), recipe, dtype)
    told = {"family": family, "tuned": config.files[0], "base": config.files[1], **licences}
    tell(config, {**about(config.out, modules, dtype), **told}, loss)


@doing("reading the LoRAs")
def fit(references: Sequence[Reference], model: str | None, allow_partial: bool) -> Fitted:
    """The LoRAs, with the names their modules have in `model`, or in the one family that has all of them.

    Raises FewstepError with the coverage when some have no place, unless allow_partial: then they are left out.
    """
    files = [(reference, open_lora(reference.file)) for reference in references]
    if model is not None:
        base, shapes = weights_of(model)
        terms = placed(files, shapes, model, allow_partial, base)
        return Fitted(terms, family_of(shapes), model)
    misplaced = count_misplaced([file for _, file in files])
    best = min(misplaced, key=lambda name: misplaced[name])
    fitting = [name for name, count in misplaced.items() if count == 0]
    if len(fitting) > 1:
        shapes = FAMILIES[best].all_modules()
        best, reason = origin_of(fitting, [(file, file.adapter(shapes).modules) for _, file in files])
        note(f"fits {' and '.join(fitting)}; taken as {best}, {reason}; --model says otherwise")
    return Fitted(placed(files, FAMILIES[best].all_modules(), best, allow_partial), best, None)


def count_misplaced(files: Sequence[LoraFile]) -> dict[str, int]:
    """Family -> modules of the LoRAs that have no place in it; only families that lack the fewest names are told.

    Names come first because sizes take reading the files.
    """
    tables = {name: family.all_modules() for name, family in FAMILIES.items()}
    adapters = {name: [file.adapter(shapes) for file in files] for name, shapes in tables.items()}
    unknown = {name: sum(m not in tables[name] for a in found for m in a.modules) for name, found in adapters.items()}
    likely = [name for name, count in unknown.items() if count == min(unknown.values())]
    return {name: sum(len(misfits(adapter, tables[name])) for adapter in adapters[name]) for name in likely}


def placed(
    files: Sequence[tuple[Reference, LoraFile]],
    shapes: Mapping[str, ModuleShape],
    model: str,
    allow_partial: bool,
    base: Base | None = None,
) -> tuple[Term, ...]:
    """The LoRAs on these modules. Raises FewstepError for one that does not fit."""
    terms = []
    for reference, file in files:
        adapter = file.adapter(shapes, base)
        wrong = misfits(adapter, shapes)
        if wrong and allow_partial and len(wrong) < len(adapter.modules):
            some = ", ".join(wrong[:3]) + (", ..." if len(wrong) > 3 else "")
            note(f"{len(wrong)} modules of {reference.path} are left out: {some}")
            adapter = adapter.without(wrong)
        else:
            check_fits(adapter, shapes, str(reference.path), model)
        if other := other_family(file.recipe, family_of(shapes)):
            note(f"{reference.path} was made for {other}; it is taken as {family_of(shapes)}")
        terms.append(Term(reference, file, adapter))
    return tuple(terms)


def merged_recipe(fitted: Fitted) -> Recipe:
    """How the sum wants to be sampled: as the first acceleration in it that is added, else as the first LoRA."""
    recipes = [term.recipe for term in fitted.terms if term.recipe and term.reference.weight > 0]
    first = next((recipe for recipe in recipes if recipe.accelerates), next(iter(recipes), None))
    if first is None:
        return Recipe(method="denoising", family=fitted.family)
    return first.model_copy(update={"family": fitted.family, "training": {}, "recognised_by": "", "licence": ""})


def sources_of(fitted: Fitted, licences: Sequence[str] = ()) -> dict[str, str]:
    """Metadata: what was added, and under which licences: these, the LoRAs' and of the models they were trained on."""
    sources = [
        {
            "file": str(term.reference.path.name),
            "weight": term.reference.weight,
            "blocks": dict(term.reference.blocks),
            "sha256": hash_of(term.reference.file),
            **({"baked_against": fitted.model} if term.file.dora else {}),
        }
        for term in fitted.terms
    ]
    found = [licence for term in fitted.terms for licence in licences_of_term(term)]
    return {"fewstep.sources": json.dumps(sources)} | joined(licences, found)


def licences_of_term(term: Term) -> list[str]:
    """What a LoRA's file says, and the licence of the model its recipe says it was trained on, if that is known."""
    return told_by(term.adapter.metadata) + (licences_named(base_name(term.recipe)) if term.recipe else [])


def told_of(fitted: Fitted) -> dict[str, Any]:
    """What a person or program is told about the sum."""
    return {
        "family": fitted.family,
        **joined(licence for term in fitted.terms for licence in licences_of_term(term)),
        "sources": [
            {"file": str(term.reference.path), "weight": term.reference.weight, "modules": len(term.adapter.modules)}
            for term in fitted.terms
        ],
    }


def write_sum(config: AdapterOutput, modules: Mapping[str, LowRank], fitted: Fitted) -> None:
    """Write the sum, cut to a rank if the config asks for it."""
    loss = None
    if config.rank is not None or config.energy is not None:
        modules, loss = compress(modules, config.rank, config.energy)
    dtype = dtype_of(config, [term.file.dtype for term in fitted.terms])
    recipe = merged_recipe(fitted)
    kept = carried([term.adapter.metadata for term in fitted.terms], recipe)
    save(config, Adapter(modules, kept | sources_of(fitted)), recipe, dtype)
    tell(config, {**about(config.out, modules, dtype), **told_of(fitted)}, loss)


def dtype_of(config: AdapterOutput, inputs: Iterable[torch.dtype]) -> torch.dtype:
    """The type to write a LoRA in: the one asked for, or the widest of its inputs'."""
    return widest(inputs) if config.dtype == "auto" else DTYPES[config.dtype]


@doing("writing the LoRA")
def save(config: AdapterOutput, adapter: Adapter, recipe: Recipe, dtype: torch.dtype) -> None:
    """Write the adapter as the config says, its metadata with it."""
    save_adapter(config.out, adapter, recipe, dtype, config.dialect, adapter.metadata)


def about(out: Path, modules: Mapping[str, LowRank], dtype: torch.dtype) -> dict[str, Any]:
    """What a file that was written is."""
    ranks = [size_of(modules, name).rank for name in modules]
    name = next(name for name, known in DTYPES.items() if known == dtype)
    return {
        "out": str(out), "modules": len(ranks), "rank": max(ranks, default=0), "dtype": name, "sha256": hash_of(out)
    }  # fmt: skip


def tell(config: AdapterOutput, facts: Mapping[str, Any], loss: Loss | None) -> None:
    """Print the facts, as lines or as one JSON document."""
    if loss is not None:
        lost = {"energy": loss.energy, "mean_error": loss.mean, "worst_error": loss.worst}
        facts = {**facts, **lost, "worst_module": loss.worst_module}
    if config.as_json:
        print(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        for item in value if isinstance(value, list) else [value]:
            meaning = f"  ({MEANINGS[name]})" if name in MEANINGS else ""
            print(f"{name.replace('_', ' '):<12}  {said(item)}{meaning}")


def said(value: Any) -> str:
    """A fact as a person reads it."""
    if isinstance(value, dict):
        value = f"{value['weight']:g} x {value['file']}, {value['modules']} modules"
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))
