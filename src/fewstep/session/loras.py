"""The LoRAs of a session: files opened and checked against its model, and kept open while they are used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from typing_extensions import TypedDict

from fewstep.assets import ACCELERATION, MODEL
from fewstep.diffusion.solvers import SOLVERS
from fewstep.families import ModuleShape
from fewstep.lora.files import Base, hash_of, load_adapter
from fewstep.lora.fitting import check_made_for
from fewstep.lora.low_rank import Adapter
from fewstep.lora.recipe import Recipe
from fewstep.models.plugging import WeightedAdapter
from fewstep.models.references import LoraReference, parse_reference


class LoraFacts(TypedDict):
    """What the recipe of a picture says of a LoRA."""

    file: str  # as it was typed
    weight: float
    blocks: dict[str, float]  # block -> its weight, where that is another one
    sha256: str


@dataclass(frozen=True, eq=False)
class OpenLora:
    """A LoRA file that fits the model."""

    file: Path
    changed: int  # when the file was, in nanoseconds
    adapter: Adapter
    recipe: Recipe | None

    @cached_property
    def sha256(self) -> str:
        """Of the file."""
        return hash_of(self.file)


@dataclass(frozen=True)
class PluggedLora:
    """An open LoRA, and how much of it is plugged in."""

    reference: LoraReference
    lora: OpenLora

    @property
    def term(self) -> WeightedAdapter:
        """Its part in the sum."""
        return self.reference.weight_of, self.lora.adapter

    @property
    def facts(self) -> LoraFacts:
        """What the recipe of a picture says of it."""
        reference = self.reference
        return {
            "file": str(reference.path),
            "weight": reference.weight,
            "blocks": dict(reference.blocks),
            "sha256": self.lora.sha256,
        }


class Shelf:
    """LoRA files opened for one model; each is opened, and each of its tensors checked, once."""

    def __init__(
        self, model: str, shapes: Mapping[str, ModuleShape], prediction_type: str, weights: Base | None = None
    ) -> None:
        """model: its name, for errors. weights: W0 of a module, which a DoRA needs; None refuses those."""
        self._model, self._shapes, self._prediction, self._weights = model, shapes, prediction_type, weights
        self._open: dict[Path, OpenLora] = {}

    def take(self, loras: Sequence[str]) -> tuple[PluggedLora, ...]:
        """The LoRAs as they are typed. Raises FewstepError for one that is not there or does not fit the model."""
        return self.fit([parse_reference(text) for text in loras])

    def fit(self, references: Sequence[LoraReference]) -> tuple[PluggedLora, ...]:
        """The LoRAs meant, opened. Raises FewstepError likewise."""
        return tuple(PluggedLora(reference, self._opened(reference)) for reference in references)

    def _opened(self, reference: LoraReference) -> OpenLora:
        file = reference.file
        changed = file.stat().st_mtime_ns
        known = self._open.get(file)
        if known is None or known.changed != changed:
            adapter, recipe = load_adapter(file, self._shapes, self._weights)
            check_made_for(adapter, recipe, self._shapes, str(reference.path), self._model, self._prediction)
            known = self._open[file] = OpenLora(file, changed, adapter, recipe)
        return known


def recipes_of(model: Recipe | None, loras: Sequence[PluggedLora]) -> tuple[Recipe, ...]:
    """The recipes that a plan follows: the model's own, then those of the LoRAs that are added, not subtracted."""
    plugged = [one.lora.recipe for one in loras if one.reference.weight > 0]
    return tuple(recipe for recipe in (model, *plugged) if recipe is not None)


def default_loras(model: str, solver: str) -> tuple[str, ...]:
    """What is plugged in where no LoRA is named: emoji's own acceleration, unless the solver is for ordinary models."""
    fits = solver == "auto" or (solver in SOLVERS and SOLVERS[solver].distilled_only)
    return (ACCELERATION,) if model == MODEL and fits else ()
