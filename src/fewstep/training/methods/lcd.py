"""Latent consistency distillation."""

from dataclasses import dataclass
from typing import ClassVar

from fewstep.configs import DistillConfig
from fewstep.diffusion.consistency import consistency
from fewstep.lora.recipe import Recipe
from fewstep.models.model import Model
from fewstep.training.methods.consistency import (
    check_model,
    check_teacher,
    distilled_recipe,
    distilling_players,
)
from fewstep.training.methods.method import CONSISTENCY, TEACHER, Method
from fewstep.training.networks import Networks
from fewstep.training.players import Player


@dataclass(frozen=True)
class LCD:
    """Latent consistency distillation, which makes LCM-LoRAs (arXiv 2311.05556, Algorithm 1)."""

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
        return distilling_players(networks, self.model, self.config, lambda pair, batch: consistency)

    def recipe(self, samples: int) -> Recipe:
        return distilled_recipe(self.model, self.config, samples, "lcm")


METHODS: dict[str, type[Method]] = {"lcd": LCD}
