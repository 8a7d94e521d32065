"""The ordinary denoising loss: `fewstep finetune`."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from fewstep.configs import FinetuneConfig
from fewstep.lora.recipe import Recipe
from fewstep.models.model import Model
from fewstep.training.adapt import Batch, describe
from fewstep.training.losses import denoising_loss
from fewstep.training.methods.method import refuse_embedded_guidance
from fewstep.training.networks import STUDENT, Networks
from fewstep.training.players import Player


@dataclass(frozen=True)
class Denoising:
    """Fine-tuning with the denoising loss. Timesteps are uniform on the schedule (DDPM, arXiv 2006.11239)."""

    model: Model
    config: FinetuneConfig

    reads: ClassVar[frozenset[str]] = frozenset()
    with_teacher: ClassVar[bool] = False

    def __post_init__(self) -> None:
        refuse_embedded_guidance(self.model)

    @staticmethod
    def check(config: FinetuneConfig) -> None:
        """Raise nothing: all values fit together."""

    def players(self, networks: Networks) -> dict[str, Player]:
        return {STUDENT: Player(networks.trainable(STUDENT), self.loss)}

    def loss(self, module: nn.Module, batch: Batch, step: int) -> Tensor:
        """The loss of a batch, a scalar."""
        schedule, prediction = self.model.schedule, self.model.prediction
        level = schedule.at((batch.time * len(schedule)).long()).to(batch.x_0.device)
        x_t = level.alpha * batch.x_0 + level.sigma * batch.eps
        return denoising_loss(module(x_t, level.t, batch.conditioning), prediction, batch.x_0, level, batch.eps)

    def recipe(self, samples: int) -> Recipe:
        return describe(self.model, self.config, "denoising", samples)
