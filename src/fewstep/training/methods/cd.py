"""Consistency distillation."""

from dataclasses import dataclass
from typing import ClassVar

from fewstep.configs import DistillConfig
from fewstep.diffusion.consistency import consistency
from fewstep.lora.recipe import Recipe
from fewstep.models.model import Model
from fewstep.session.plan import psi_named
from fewstep.training.adapt import usual_guidance
from fewstep.training.methods.consistency import (
    check_model,
    distilling_players,
    recipe_of,
)
from fewstep.training.methods.method import CONSISTENCY, SYNTHETIC, Method
from fewstep.training.networks import Networks
from fewstep.training.players import Player


@dataclass(frozen=True)
class CD:
    """Consistency distillation from a teacher without guidance, for models in pixel space, which take no text
    (arXiv 2303.01469, Algorithm 2).

    The paper's noise levels are Karras' (VE). Here they are the model's own (VP), every k-th timestep.
    """

    model: Model
    config: DistillConfig

    reads: ClassVar[frozenset[str]] = CONSISTENCY | SYNTHETIC | {"psi"}
    with_teacher: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_model(self.model, unguided(self.config))

    @staticmethod
    def check(config: DistillConfig) -> None:
        """Raise UsageError for a solver that cannot be Psi."""
        psi_named(config.psi)

    def players(self, networks: Networks) -> dict[str, Player]:
        return distilling_players(networks, self.model, unguided(self.config), lambda pair, batch: consistency)

    def recipe(self, samples: int) -> Recipe:
        """The recipe of the result. A model with text needs its usual guidance when sampling: none is distilled in."""
        scale = usual_guidance(self.model)
        return recipe_of(self.model, self.config, samples, "lcm", (1.0, 1.0), scale, psi=self.config.psi)


def unguided(config: DistillConfig) -> DistillConfig:
    """The config with the teacher's guidance off."""
    return config.model_copy(update={"guidance_scale": 1.0})


METHODS: dict[str, type[Method]] = {"cd": CD}
