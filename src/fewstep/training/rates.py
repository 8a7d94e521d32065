"""The learning rate of each step, and the number of steps of a run."""

import math

from fewstep.configs import TrainingConfig
from fewstep.data.cache.processes import this_process


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The learning rate of step number `step`: linear warm-up, then as --decay names.

    The curves are those of diffusers' get_scheduler. Here they end at 0, and the first step of a warm-up is not 0.
    """
    rate = config.learning_rate * min(1.0, (step + 1) / max(config.warmup, 1))
    done = min(max(step - config.warmup, 0) / max(config.train_steps - config.warmup, 1), 1.0)
    if config.decay == "linear":
        return rate * (1 - done)
    if config.decay == "polynomial":
        return rate * math.pow(1 - done, config.power)
    if config.decay == "cosine":
        within = 1.0 if done == 1 else config.cycles * done % 1
        return rate * 0.5 * (1 + math.cos(math.pi * within))
    return rate


def steps_in(config: TrainingConfig, samples: int) -> int:
    """The number of optimiser steps: --steps, or those in which --epochs passes over all samples end."""
    if config.epochs is None:
        return config.train_steps
    size = config.batch_size * config.accumulate * this_process().of
    return math.ceil(config.epochs * samples / size)
