"""LoRAs for a sum: opened, fitted to one model or family, with the metadata of their files."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from fewstep.errors import number_of, option
from fewstep.events import doing, note
from fewstep.families import FAMILIES, ModuleShape, family_of
from fewstep.lora.files import Base, LoraFile, hash_of, open_lora
from fewstep.lora.fitting import origin_of, other_family
from fewstep.lora.low_rank import Adapter, check_fits, misfits
from fewstep.lora.recipe import Recipe
from fewstep.lora.rounding import loss_note
from fewstep.models.licences import joined, licences_in, licences_named
from fewstep.models.references import LoraReference
from fewstep.models.weights import base_name, weights_of


class Term(NamedTuple):
    """One LoRA of a sum."""

    reference: LoraReference
    file: LoraFile
    adapter: Adapter

    @property
    def recipe(self) -> Recipe | None:
        """Its sampling recipe."""
        return self.file.recipe


class Fitted(NamedTuple):
    """LoRAs whose modules all have a place in one model."""

    terms: tuple[Term, ...]
    family: str
    model: str | None  # named by the user; DoRAs become updates of its weights. None = no model was named


@doing("reading the LoRAs")
def fit(references: Sequence[LoraReference], model: str | None, allow_partial: bool) -> Fitted:
    """The LoRAs, with the names that their modules have in `model`, or else in the one family that has them all.

    A module without a place raises FewstepError with the coverage. With allow_partial it is left out instead.
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
        note(f"fits {' and '.join(fitting)}; taken as {best}, because {reason}; {option('model')} names another")
    return Fitted(placed(files, FAMILIES[best].all_modules(), best, allow_partial), best, None)


def count_misplaced(files: Sequence[LoraFile]) -> dict[str, int]:
    """Family -> number of the LoRAs' modules that have no place in it, for the families that lack the fewest names.

    Names are compared first, because comparing sizes needs the files.
    """
    tables = {name: family.all_modules() for name, family in FAMILIES.items()}
    adapters = {name: [file.adapter(shapes) for file in files] for name, shapes in tables.items()}
    unknown = {name: sum(m not in tables[name] for a in found for m in a.modules) for name, found in adapters.items()}
    likely = [name for name, count in unknown.items() if count == min(unknown.values())]
    return {name: sum(len(misfits(adapter, tables[name])) for adapter in adapters[name]) for name in likely}


def placed(
    files: Sequence[tuple[LoraReference, LoraFile]],
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
            note(f"left out of {reference.path}: {number_of(len(wrong), 'module')}, {some}")
            adapter = adapter.without(wrong)
        else:
            check_fits(adapter, shapes, str(reference.path), model)
        if other := other_family(file.recipe, family_of(shapes)):
            note(f"{reference.path} was made for {other}; here it is used for {family_of(shapes)}")
        terms.append(Term(reference, file, adapter))
    return tuple(terms)


def merged_recipe(fitted: Fitted) -> Recipe:
    """The recipe of the sum: that of its first acceleration with a positive weight, else of its first LoRA with one."""
    recipes = [term.recipe for term in fitted.terms if term.recipe and term.reference.weight > 0]
    first = next((recipe for recipe in recipes if recipe.accelerates), next(iter(recipes), None))
    if first is None:
        return Recipe(method="denoising", family=fitted.family)
    return first.model_copy(update={"family": fitted.family, "training": {}, "recognised_by": "", "licence": ""})


def sources_of(fitted: Fitted, licences: Sequence[str] = ()) -> dict[str, str]:
    """Metadata: the LoRAs of the sum, and all licences: `licences`, the LoRAs', and those of their base models."""
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
    """The licences in a LoRA's file, and the licence of the model in its recipe, if that is known."""
    return licences_in(term.adapter.metadata) + (licences_named(base_name(term.recipe)) if term.recipe else [])


def facts_of(fitted: Fitted) -> dict[str, Any]:
    """Facts about the sum, for people and programs."""
    return {
        "family": fitted.family,
        **joined(licence for term in fitted.terms for licence in licences_of_term(term)),
        "sources": [
            {"file": str(term.reference.path), "weight": term.reference.weight, "modules": len(term.adapter.modules)}
            for term in fitted.terms
        ],
    }


def tell_loss(lost: Mapping[torch.dtype, float]) -> None:
    """Note it when the model's type loses much of the LoRAs."""
    if text := loss_note(lost, f"fold them into a float32 copy of the model, or use sample {option('live_lora')}"):
        note(text)
