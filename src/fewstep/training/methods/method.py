"""The method protocol: a way to train a model. Each method is in one file."""

from typing import Any, ClassVar, Protocol

from fewstep.configs import AdapterConfig, DistillConfig
from fewstep.errors import UsageError, option
from fewstep.lora.recipe import Recipe
from fewstep.models.model import Model
from fewstep.training.networks import Networks
from fewstep.training.players import Player

CONSISTENCY = frozenset(
    {"k", "target", "target_decay", "loss", "huber_c", "focus", "weighting", "grid", "sampler"}
)  # options of DistillConfig for training a consistency model
SYNTHETIC = frozenset(
    {"synthetic", "prompt_file", "images", "synthetic_steps", "synthetic_guidance_scale"}
)  # options of DistillConfig for pictures that the teacher draws
TEACHER = SYNTHETIC | {"psi", "guidance_scale", "guidance_scale_max", "w_embedding"}  # and all for the teacher
OF_METHODS = DistillConfig.model_fields.keys() - AdapterConfig.model_fields.keys() - {"method"}


def refuse_embedded_guidance(model: Model) -> None:
    """Raise UsageError for a model that takes guidance as an input: a few-step model, which cannot be a teacher."""
    if model.embeds_guidance:
        raise UsageError(
            f"{model.path} takes guidance as an input: it is already a few-step model",
            f"use distill {option('method')} lcf to train it further, or use the model that it was made from",
        )


class Method(Protocol):
    """A way to train a model with a config. It is frozen and made for one run.

    The first paragraph of the class's docstring is the method's help text.
    """

    reads: ClassVar[frozenset[str]]  # the options of OF_METHODS that have an effect; others are refused
    with_teacher: ClassVar[bool]  # whether a loss evaluates the original model

    def __init__(self, model: Model, config: Any) -> None:
        """Raises UsageError for a model that cannot be trained with this method."""

    @property
    def model(self) -> Model:
        """The model to train."""

    @property
    def config(self) -> AdapterConfig:
        """How."""

    @staticmethod
    def check(config: Any) -> None:
        """Raise UsageError for values that do not fit together, before anything is read."""

    def players(self, networks: Networks) -> dict[str, Player]:
        """The players by name, each with its loss. The first is the student, which is exported."""

    def recipe(self, samples: int) -> Recipe:
        """The recipe of the result. samples: number of samples that it was trained on."""
