"""What a method is: a way to train a model, in one file."""

from typing import Any, ClassVar, Protocol

from fewstep.configs import AdapterConfig, DistillConfig
from fewstep.lora.recipe import Recipe
from fewstep.models.model import Model
from fewstep.training.networks import Networks
from fewstep.training.players import Player

CONSISTENCY = frozenset(
    {"k", "target", "target_decay", "loss", "huber_c", "focus", "weighting", "grid", "sampler"}
)  # options of DistillConfig that decide on a consistency model
TEACHER = frozenset({"psi", "guidance_scale", "guidance_scale_max"})  # and on what it is distilled from
OF_METHODS = DistillConfig.model_fields.keys() - AdapterConfig.model_fields.keys() - {"method"}


class Method(Protocol):
    """A way to train a model, by a config: frozen, made for one run.

    The first paragraph of its class's docstring is its help.
    """

    reads: ClassVar[frozenset[str]]  # the options of OF_METHODS that change something; the others are refused
    with_teacher: ClassVar[bool]  # whether a loss asks the model as it was given

    def __init__(self, model: Model, config: Any) -> None:
        """Raises UsageError for a model that cannot be trained so."""

    @property
    def model(self) -> Model:
        """What is trained."""

    @property
    def config(self) -> AdapterConfig:
        """How."""

    @staticmethod
    def check(config: Any) -> None:
        """Raise UsageError for values that do not go together, before anything is read."""

    def players(self, networks: Networks) -> dict[str, Player]:
        """What is trained, by name, each with its loss; the student is the first, and what is exported."""

    def recipe(self, samples: int) -> Recipe:
        """How the result wants to be sampled. samples: how many it is trained on."""
