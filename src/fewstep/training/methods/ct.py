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

    The paper's noise levels are Karras' (VE). Here they are timesteps of the model's own schedule (VP): evenly spaced
    ones, or with the curriculum "easy" all of them.
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
        """Raise UsageError for a grid that would become coarser, and for a first one that the curriculum has itself."""
        if config.curriculum == "easy" and "first_levels" in config.model_fields_set:
            raise UsageError(
                f"{option('curriculum')} easy begins with steps to the clean level, so it takes no"
                f" {option('first_levels')}",
                f"leave out {option('first_levels')}",
            )
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

    @property
    def first_levels(self) -> int:
        """s_0: 1 with the curriculum "easy", else as asked."""
        return 1 if self.config.curriculum == "easy" else self.config.first_levels

    def levels(self, step: int) -> int:
        """N(k): the number of levels at the run's step k, the clean one included."""
        count = root_levels if self.config.curriculum == "square-root" else doubling_levels
        return count(step, self.config.train_steps, self.first_levels, self.config.last_levels)

    def target_decay(self, finished: int) -> float:
        """mu(k): the decay of the target's average at the end of step k, the last of `finished` ones."""
        return decay_at(self.levels(finished - 1), self.first_levels, self.config.target_decay)

    def pair(self, batch: Batch, step: int) -> Pair:
        """One of this step's pairs for each sample, all with the same probability."""
        schedule, easy = self.model.schedule, self.config.curriculum == "easy"
        starts, ends = (shrinking_steps if easy else grid_steps)(self.levels(step), len(schedule))
        s, t = at(starts, batch.time), at(ends, batch.time)
        high, low = (level_at(schedule, timesteps).to(batch.x_0.device) for timesteps in (s, t))
        return Pair(high, low, t, weights(self.config, schedule, high, low, starts, ends))

    def recipe(self, samples: int) -> Recipe:
        """The recipe of the result, which is sampled at evenly spaced timesteps: at those, or near those, it saw."""
        config = self.config
        own = {"curriculum": config.curriculum, "first_levels": self.first_levels, "last_levels": config.last_levels}
        recipe = recipe_of(self.model, config, samples, "lcm", None, usual_guidance(self.model), **own)
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


def grid_steps(levels: int, T: int) -> tuple[Tensor, Tensor]:
    """The steps of a grid: the timesteps at which they start, (levels - 1,), and those at which they end."""
    grid = torch.tensor(timestep_grid(levels, T))
    return grid[1:], grid[:-1]


def shrinking_steps(levels: int, T: int) -> tuple[Tensor, Tensor]:
    """A step from every timestep, (T,), and where it ends: it goes 1 / (levels - 1) of the way to the clean level.

    The first stage has 2 levels, so its steps end at the clean level: there the loss is that of a denoiser.
    Source: ECT, arXiv 2406.14548, section 3.2, with q = 2, and with timesteps in place of Karras' sigma.
    """
    starts = torch.arange(T)
    return starts, (starts + 1) * (levels - 2) // (levels - 1) + CLEAN


METHODS: dict[str, type[Method]] = {"ct": CT}
