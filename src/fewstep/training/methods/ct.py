"""Consistency training."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fewstep.configs import DistillConfig
from fewstep.errors import UsageError, option
from fewstep.lora.recipe import Recipe
from fewstep.models.model import Model
from fewstep.training.adapt import Batch, usual_guidance
from fewstep.training.losses import lcf_loss
from fewstep.training.methods.consistency import (
    CLEAN,
    Pair,
    at,
    denoiser_of,
    distance_of,
    level_at,
    recipe_of,
    weights,
)
from fewstep.training.methods.method import Method, refuse_embedded_guidance
from fewstep.training.networks import STUDENT, Networks
from fewstep.training.players import Player


@dataclass(frozen=True)
class CT:
    """Consistency training: a few-step model from images alone, without a teacher (arXiv 2303.01469, Algorithm 3). The
    grid of noise levels becomes finer while it trains. With --full it trains new weights too.

    The paper's noise levels are Karras' (VE). Here they are evenly spaced timesteps of the model's own schedule (VP).
    """

    model: Model
    config: DistillConfig

    reads: ClassVar[frozenset[str]] = frozenset(
        {"target", "target_decay", "loss", "huber_c", "weighting", "first_levels", "last_levels", "curriculum"}
    )
    with_teacher: ClassVar[bool] = False

    def __post_init__(self) -> None:
        refuse_embedded_guidance(self.model)
        T = len(self.model.schedule)
        if self.config.last_levels > T:
            raise UsageError(
                f"{option('last_levels')} {self.config.last_levels} is more than the schedule's {T} timesteps",
                f"use at most {T}",
            )

    @staticmethod
    def check(config: DistillConfig) -> None:
        """Raise UsageError for a grid that would become coarser."""
        if config.first_levels > config.last_levels:
            raise UsageError(
                f"{option('first_levels')} {config.first_levels} is above {option('last_levels')} {config.last_levels}",
                f"make {option('last_levels')} the larger one",
            )

    def players(self, networks: Networks) -> dict[str, Player]:
        student = networks.trainable(STUDENT)
        ema = self.config.target == "ema"
        target = networks.following(STUDENT, self.target_decay) if ema else networks.network(STUDENT)

        def loss(module: nn.Module, batch: Batch, step: int) -> Tensor:
            pair, denoiser = self.pair(batch, step), denoiser_of(self.model, batch)
            return lcf_loss(
                denoiser(module),
                denoiser(target),
                batch.x_0,
                pair.s,
                pair.t,
                batch.eps,
                distance_of(self.config),
                pair.weight,
            )

        return {STUDENT: Player(student, loss)}

    def levels(self, step: int) -> int:
        """N(k): the number of levels at the run's step k, the clean one included."""
        config = self.config
        count = {"square-root": root_levels, "doubling": doubling_levels}[config.curriculum]
        return count(step, config.train_steps, config.first_levels, config.last_levels)

    def target_decay(self, finished: int) -> float:
        """mu(k): the decay of the target's average at the end of step k, the last of `finished` ones."""
        return decay_at(self.levels(finished - 1), self.config.first_levels, self.config.target_decay)

    def pair(self, batch: Batch, step: int) -> Pair:
        """Neighbours on the grid of this step, all pairs with the same probability."""
        schedule, grid = self.model.schedule, torch.tensor(timestep_grid(self.levels(step), len(self.model.schedule)))
        s, ends = at(grid[1:], batch.time), at(grid[:-1], batch.time)
        high, low = (level_at(schedule, t).to(batch.x_0.device) for t in (s, ends))
        return Pair(high, low, ends, weights(self.config, schedule, high, low, grid[1:], grid[:-1]))

    def recipe(self, samples: int) -> Recipe:
        """The recipe of the result, which is sampled at evenly spaced timesteps: at those, or near those, it saw."""
        names = ("first_levels", "last_levels", "curriculum")
        own = {name: getattr(self.config, name) for name in names}
        recipe = recipe_of(self.model, self.config, samples, "lcm", None, usual_guidance(self.model), **own)
        return recipe.model_copy(update={"k": None, "grid": "trailing"})


def root_levels(step: int, steps: int, first: int, last: int) -> int:
    """N(k) = ceil(sqrt(k / K ((s_1 + 1)^2 - s_0^2) + s_0^2) - 1) + 1: from s_0 levels to s_1 + 1.

    Source: arXiv 2303.01469, appendix C. k: `step`; K: `steps`; s_0: `first`; s_1: `last`.
    """
    return math.ceil(math.sqrt(step / steps * ((last + 1) ** 2 - first**2) + first**2) - 1) + 1


def doubling_levels(step: int, steps: int, first: int, last: int) -> int:
    """N(k) = min(s_0 2^floor(k / K'), s_1) + 1, with K' = floor(K / (floor(log2(s_1 / s_0)) + 1)).

    Source: iCT, arXiv 2310.14189, section 3.4. k: `step`; K: `steps`; s_0: `first`; s_1: `last`.
    """
    stages = (last // first).bit_length()  # floor(log2(s_1 / s_0)) + 1
    doublings = step // max(steps // stages, 1)
    return min(first << min(doublings, stages), last) + 1


def decay_at(levels: int, first: int, decay: float) -> float:
    """mu(k) = exp(s_0 log(mu_0) / N(k)): mu_0 on the first grid, and nearer to 1 the finer the grid is.

    Source: arXiv 2303.01469, appendix C. decay: mu_0; 0 gives 0.
    """
    return math.pow(decay, first / levels)


def timestep_grid(levels: int, T: int) -> list[int]:
    """The timesteps of `levels` levels, ascending and evenly spaced from CLEAN to T - 1."""
    return [round(i * T / (levels - 1)) + CLEAN for i in range(levels)]


METHODS: dict[str, type[Method]] = {"ct": CT}
