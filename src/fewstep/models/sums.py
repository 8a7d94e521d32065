"""LoRAs that are to be added up: opened, fitted to one model or family, with what their files say."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from fewstep.errors import option
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
        """How it wants to be sampled."""
        return self.file.recipe


class Fitted(NamedTuple):
    """LoRAs whose modules all have their place in one model."""

    terms: tuple[Term, ...]
    family: str
    model: str | None  # that was named, whose weights DoRAs are baked against


@doing("reading the LoRAs")
def fit(references: Sequence[LoraReference], model: str | None, allow_partial: bool) -> Fitted:
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
        note(f"fits {' and '.join(fitting)}; taken as {best}, {reason}; {option('model')} says otherwise")
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
    return licences_in(term.adapter.metadata) + (licences_named(base_name(term.recipe)) if term.recipe else [])


def facts_of(fitted: Fitted) -> dict[str, Any]:
    """What a person or program is told about the sum."""
    return {
        "family": fitted.family,
        **joined(licence for term in fitted.terms for licence in licences_of_term(term)),
        "sources": [
            {"file": str(term.reference.path), "weight": term.reference.weight, "modules": len(term.adapter.modules)}
            for term in fitted.terms
        ],
    }


def tell_loss(lost: Mapping[torch.dtype, float]) -> None:
    """Say it when the model's type loses much of the LoRAs."""
    if text := loss_note(
        lost, f"fold them into a float32 copy of the model, or plug them in by sample {option('live_lora')}"
    ):
        note(text)
