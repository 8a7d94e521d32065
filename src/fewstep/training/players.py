"""Players: the weights that a run trains, each with an optimiser, averages, a loss and a pace of its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fewstep.configs import TrainingConfig
from fewstep.training.packages import bitsandbytes_for

Loss = Callable[[nn.Module, Any, int], Tensor]  # the module (wrapped for several processes), a batch, finished steps

Decay = float | Callable[[int], float]  # of an average: the same at all steps, or by the number of finished steps


class Average(NamedTuple):
    """An exponential moving average of the trained parameters (theta- in LCM's Algorithm 1).

    A LoRA's parameters are A and B, and each is averaged separately. The product of the two averages is not the average
    of the products B A.
    """

    decay: Decay  # 0 copies; near 1 is slow
    shadow: dict[str, Tensor]  # same names and shapes as the parameters; updated in place
    warm_up: bool = False  # whether the decay starts low and rises as (1 + step) / (10 + step)

    def update(self, parameters: Mapping[str, Tensor], step: int) -> None:
        """Set shadow to decay * shadow + (1 - decay) * parameter, after the player's step number `step`."""
        decay = self.decay(step) if callable(self.decay) else self.decay
        decay = min(decay, (1 + step) / (10 + step)) if self.warm_up else decay
        names = list(self.shadow)
        with torch.no_grad():
            torch._foreach_lerp_([self.shadow[n] for n in names], [parameters[n].detach() for n in names], 1 - decay)


def average_of(parameters: Mapping[str, Tensor], decay: float, warm_up: bool = True) -> Average:
    """An average that starts as a copy of the parameters."""
    return Average(decay, {name: p.detach().clone() for name, p in parameters.items()}, warm_up)


class Trainable(NamedTuple):
    """Weights that are trained."""

    module: nn.Module  # the module that computes the loss
    parameters: dict[str, nn.Parameter]  # the trained ones, by name
    averages: dict[str, Average]  # by name: "export", "target", ...


def adamw(parameters: list[nn.Parameter], config: TrainingConfig, device: torch.device) -> torch.optim.Optimizer:
    """AdamW with the config's settings, which makes one pass over the parameters; or the one of 8 bits."""
    options: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.beta1, config.beta2),
        "eps": config.epsilon,
        "weight_decay": config.weight_decay,
    }
    if config.optimizer == "adamw-8bit":
        return adamw_8bit(parameters, options)
    return torch.optim.AdamW(parameters, fused=device.type in ("cpu", "cuda"), **options)


def adamw_8bit(parameters: list[nn.Parameter], options: dict[str, Any]) -> torch.optim.Optimizer:
    """AdamW whose averages have 8 bits, with a scale for each block of values (arXiv 2110.02861)."""
    package = bitsandbytes_for("optimizer", "adamw-8bit", "adamw")
    made: torch.optim.Optimizer = package.optim.AdamW8bit(parameters, **options)
    return made


@dataclass(frozen=True)
class Player:
    """Weights, their loss, and how often they take a step.

    All players that are due at a step of the run step together: their losses use the weights from before the step. A
    loss changes only the weights of its own player, even if it evaluates other networks.
    """

    trainable: Trainable
    loss: Loss
    every: int = 1  # it steps at the run's steps number every, 2 * every, 3 * every, ...
    rate: float = 1.0  # its learning rate, as a multiple of the run's
    optimizer: Callable[[list[nn.Parameter], TrainingConfig, torch.device], torch.optim.Optimizer] = adamw

    def due(self, step: int) -> bool:
        """Whether it takes part in the run's next step, after `step` finished ones."""
        return (step + 1) % self.every == 0


Players = Mapping[str, Player]  # by name; the first is the one whose result is exported
