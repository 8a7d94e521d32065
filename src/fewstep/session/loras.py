"""The LoRAs of a session. Files are opened, checked against its model, and stay open while they are used."""

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
    """A LoRA in the recipe of a picture."""

    file: str  # as the user typed it
    weight: float
    blocks: dict[str, float]  # block -> its weight, where it differs from `weight`
    sha256: str


@dataclass(frozen=True, eq=False)
class OpenLora:
    """A LoRA file that fits the model."""

    file: Path
    changed: int  # modification time of the file, in nanoseconds
    adapter: Adapter
    recipe: Recipe | None

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file."""
        return hash_of(self.file)


@dataclass(frozen=True)
class PluggedLora:
    """An open LoRA, and its weight."""

    reference: LoraReference
    lora: OpenLora

    @property
    def term(self) -> WeightedAdapter:
        """Its part in the sum."""
        return self.reference.weight_of, self.lora.adapter

    @property
    def facts(self) -> LoraFacts:
        """Its entry in the recipe of a picture."""
        reference = self.reference
        return {
            "file": str(reference.path),
            "weight": reference.weight,
            "blocks": dict(reference.blocks),
            "sha256": self.lora.sha256,
        }


class Shelf:
    """LoRA files that are open for one model. Each file is opened once, and each of its tensors is checked once."""

    def __init__(
        self, model: str, shapes: Mapping[str, ModuleShape], prediction_type: str, weights: Base | None = None
    ) -> None:
        """model: its name, for errors. weights: reads W0 of a module, which a DoRA needs; None = DoRAs are refused."""
        self._model, self._shapes, self._prediction, self._weights = model, shapes, prediction_type, weights
        self._open: dict[Path, OpenLora] = {}

    def take(self, loras: Sequence[str]) -> tuple[PluggedLora, ...]:
        """The LoRAs of these typed references. Raises FewstepError for a file that is missing or does not fit."""
        return self.fit([parse_reference(text) for text in loras])

    def fit(self, references: Sequence[LoraReference]) -> tuple[PluggedLora, ...]:
        """The LoRAs of these references, opened. Raises FewstepError like `take`."""
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
    """The recipes that a plan follows: the model's, then those of the LoRAs with a positive weight."""
    plugged = [one.lora.recipe for one in loras if one.reference.weight > 0]
    return tuple(recipe for recipe in (model, *plugged) if recipe is not None)


def default_loras(model: str, solver: str) -> tuple[str, ...]:
    """The LoRAs when the user names none: emoji's own acceleration, unless the solver is for ordinary models."""
    fits = solver == "auto" or (solver in SOLVERS and SOLVERS[solver].distilled_only)
    return (ACCELERATION,) if model == MODEL and fits else ()
