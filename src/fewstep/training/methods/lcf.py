"""Latent consistency fine-tuning."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fewstep.configs import DistillConfig
from fewstep.diffusion.guidance import Network
from fewstep.errors import UsageError, option
from fewstep.lora.files import open_lora
from fewstep.lora.recipe import Recipe
from fewstep.models.model import Model
from fewstep.models.references import LoraReference
from fewstep.training.adapt import Batch
from fewstep.training.losses import lcf_loss
from fewstep.training.methods.consistency import (
    LCM_GUIDANCE,
    consistency_players,
    denoiser_of,
    distance_of,
    pair_of,
    recipe_of,
)
from fewstep.training.methods.method import CONSISTENCY, Method
from fewstep.training.networks import Networks
from fewstep.training.players import Player


@dataclass(frozen=True)
class LCF:
    """Latent consistency fine-tuning, without a teacher. It teaches the look of --data to the few-step model in
    --init-lora or --model, which stays a few-step model (arXiv 2310.04378, Algorithm 4).
    """

    model: Model
    config: DistillConfig

    reads: ClassVar[frozenset[str]] = CONSISTENCY
    with_teacher: ClassVar[bool] = False

    def __post_init__(self) -> None:
        few_step_start(self.model, self.config)

    @staticmethod
    def check(config: DistillConfig) -> None:
        """Raise UsageError for pictures that the model draws itself: they have its look already."""
        if config.synthetic:
            raise UsageError(
                f"{option('method')} lcf teaches the look of real images, and {option('synthetic')} has none",
                f"give it images with {option('data')}, or use {option('method')} lcd",
            )

    def players(self, networks: Networks) -> dict[str, Player]:
        return consistency_players(networks, self.config, self.loss)

    def loss(self, student: Network, target: Network, batch: Batch) -> Tensor:
        """The loss of a batch, a scalar."""
        pair = pair_of(self.config, self.model.schedule, batch)
        denoisers = denoiser_of(self.model, batch, self.embedded(batch))
        distance = distance_of(self.config)
        return lcf_loss(
            denoisers(student), denoisers(target), batch.x_0, pair.s, pair.t, batch.eps, distance, pair.weight
        )

    def embedded(self, batch: Batch) -> Tensor | None:
        """The guidance scales (B,) for a model that takes them as an input, drawn from its range (Algorithm 4)."""
        if not self.model.embeds_guidance:
            return None
        own = self.model.recipe
        lowest, highest = (own and own.teacher_guidance_scale) or LCM_GUIDANCE
        return (lowest + (highest - lowest) * batch.guidance).to(batch.x_0.device)

    def recipe(self, samples: int) -> Recipe:
        start = few_step_start(self.model, self.config)
        guidance_scale = start.guidance_scale if self.model.embeds_guidance else None
        return recipe_of(self.model, self.config, samples, "lcm", start.teacher_guidance_scale, guidance_scale or 1.0)


def few_step_start(model: Model, config: DistillConfig) -> Recipe:
    """The recipe of the few-step model from which lcf starts. Raises UsageError if there is none."""
    own = open_lora(LoraReference(config.init_lora, 1.0).file).recipe if config.init_lora else model.recipe
    if own is None or own.solver != "lcm":
        what = config.init_lora or config.model
        raise UsageError(
            f"lcf starts from a latent consistency model, but {what} has no recipe of one",
            f"give {option('init_lora')} an LCM-LoRA, or {option('model')} a result of distill {option('full')} or"
            " export",
        )
    return own


METHODS: dict[str, type[Method]] = {"lcf": LCF}
