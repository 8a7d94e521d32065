"""Players: whatever is trained in a run by an optimiser of its own, with its averages, its loss and its pace."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fewstep.configs import TrainingConfig

Loss = Callable[[nn.Module, Any, int], Tensor]  # the module (wrapped for several processes), a batch, finished steps


class Average(NamedTuple):
    """An exponential moving average that follows the trained parameters (eq. theta- of LCM's Algorithm 1).

    A LoRA's parameters are A and B, and each is averaged by itself: the product of the two averages is not the average
    of the products B A.
    """

    decay: float  # 0 copies; near 1 is slow
    shadow: dict[str, Tensor]  # same names and shapes as the parameters; updated in place
    warm_up: bool = False  # whether the decay starts low and rises as (1 + step) / (10 + step)

    def update(self, parameters: Mapping[str, Tensor], step: int) -> None:
        """shadow <- decay shadow + (1 - decay) parameter, after the player's step number `step`."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warm_up else self.decay
        names = list(self.shadow)
        with torch.no_grad():
            torch._foreach_lerp_([self.shadow[n] for n in names], [parameters[n].detach() for n in names], 1 - decay)


def average_of(parameters: Mapping[str, Tensor], decay: float, warm_up: bool = True) -> Average:
    """An average starting at a copy of the parameters."""
    return Average(decay, {name: p.detach().clone() for name, p in parameters.items()}, warm_up)


class Trainable(NamedTuple):
    """Weights that are trained."""

    module: nn.Module  # what the loss is computed through
    parameters: dict[str, nn.Parameter]  # the trained ones, by name
    averages: dict[str, Average]  # by name: "export", "target", ...


def adamw(parameters: list[nn.Parameter], config: TrainingConfig, device: torch.device) -> torch.optim.Optimizer:
    """AdamW with the config's settings, on a CPU in one pass over the parameters."""
    return torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=(0.9, config.beta2),
        weight_decay=config.weight_decay,
        fused=device.type == "cpu",
    )


@dataclass(frozen=True)
class Player:
    """Weights, what they are trained by, and how often.

    All players that step at a step of the run do so at once: their losses are those of the weights before it. A loss
    changes the weights of its own player alone, whatever other networks it goes through.
    """

    trainable: Trainable
    loss: Loss
    every: int = 1  # it takes a step at the run's steps number every, 2 every, 3 every, ...
    rate: float = 1.0  # its learning rate as a multiple of the run's
    optimizer: Callable[[list[nn.Parameter], TrainingConfig, torch.device], torch.optim.Optimizer] = adamw

    def due(self, step: int) -> bool:
        """Whether it takes a step after `step` finished ones of the run."""
        return (step + 1) % self.every == 0


Players = Mapping[str, Player]  # by name; the first is the one that the run is about
