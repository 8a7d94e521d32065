"""Trajectory consistency distillation."""

from dataclasses import dataclass
from typing import ClassVar

from fewstep.configs import DistillConfig
from fewstep.diffusion.solvers.ddim import jump_to
from fewstep.lora.recipe import Recipe
from fewstep.models.model import Model
from fewstep.training.adapt import Batch
from fewstep.training.losses import Jump
from fewstep.training.methods.consistency import (
    Pair,
    check_model,
    check_teacher,
    distilled_recipe,
    distilling_players,
    level_at,
)
from fewstep.training.methods.method import CONSISTENCY, TEACHER, Method
from fewstep.training.networks import Networks
from fewstep.training.players import Player


@dataclass(frozen=True)
class TCD:
    """Trajectory consistency distillation, whose jumps may end at any level (arXiv 2402.19159)."""

    model: Model
    config: DistillConfig

    reads: ClassVar[frozenset[str]] = CONSISTENCY | TEACHER
    with_teacher: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_model(self.model, self.config)

    @staticmethod
    def check(config: DistillConfig) -> None:
        check_teacher(config)

    def players(self, networks: Networks) -> dict[str, Player]:
        return distilling_players(networks, self.model, self.config, self.jump)

    def jump(self, pair: Pair, batch: Batch) -> Jump:
        """DDIM's step to a random level between t and the clean one. All levels have the same probability."""
        end = level_at(self.model.schedule, (batch.end * (pair.ends + 2)).floor() - 1)
        return jump_to(end.to(batch.x_0.device))

    def recipe(self, samples: int) -> Recipe:
        return distilled_recipe(self.model, self.config, samples, "tcd")


METHODS: dict[str, type[Method]] = {"tcd": TCD}
