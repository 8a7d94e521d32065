"""Conversion between eps, v and x_0. No other file knows prediction types."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fewstep.diffusion.schedule import NoiseLevel
from fewstep.errors import FewstepError


class Prediction(Protocol):
    """The meaning of a network's output (B, C, H, W) at a noise level."""

    def to_x_0(self, output: Tensor, x_t: Tensor, level: NoiseLevel) -> Tensor:
        """The estimate of x_0 that the output stands for."""

    def from_x_0(self, x_0: Tensor, x_t: Tensor, level: NoiseLevel) -> Tensor:
        """The output that stands for an estimate of x_0. Needs sigma > 0."""

    def aim(self, x_0: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:
        """The output that the network is trained to give at x_t = alpha * x_0 + sigma * eps."""


@dataclass(frozen=True)
class Eps:
    """The network predicts the noise: x_0 = (x_t - sigma eps) / alpha."""

    def to_x_0(self, output: Tensor, x_t: Tensor, level: NoiseLevel) -> Tensor:
        return (x_t - level.sigma * output) / level.alpha

    def from_x_0(self, x_0: Tensor, x_t: Tensor, level: NoiseLevel) -> Tensor:
        return eps_from_x_0(x_0, x_t, level)

    def aim(self, x_0: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:
        return eps


@dataclass(frozen=True)
class V:
    """The network predicts v = alpha eps - sigma x_0 (arXiv 2202.00512): x_0 = alpha x_t - sigma v."""

    def to_x_0(self, output: Tensor, x_t: Tensor, level: NoiseLevel) -> Tensor:
        return level.alpha * x_t - level.sigma * output

    def from_x_0(self, x_0: Tensor, x_t: Tensor, level: NoiseLevel) -> Tensor:
        return (level.alpha * x_t - x_0) / level.sigma

    def aim(self, x_0: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:
        return level.alpha * eps - level.sigma * x_0


@dataclass(frozen=True)
class X0:
    """The network predicts the clean latents themselves."""

    def to_x_0(self, output: Tensor, x_t: Tensor, level: NoiseLevel) -> Tensor:
        return output

    def from_x_0(self, x_0: Tensor, x_t: Tensor, level: NoiseLevel) -> Tensor:
        return x_0

    def aim(self, x_0: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:
        return x_0


PREDICTIONS: dict[str, Prediction] = {"epsilon": Eps(), "v_prediction": V(), "sample": X0()}


def refuse_blind(name: str, zero_terminal_snr: bool, where: str = "") -> None:
    """Raise FewstepError for epsilon prediction on a zero-terminal-SNR schedule.

    At pure noise, eps carries no information about the image (arXiv 2305.08891).
    where: the words at the beginning of the message, which name the model.
    """
    if zero_terminal_snr and name == "epsilon":
        raise FewstepError(
            f"{where}epsilon prediction on a zero-terminal-SNR schedule, where eps gives no image from pure noise",
            "such models predict v: set prediction_type to v_prediction (for a single file, put `parameterization: v`"
            " in a .yaml file of the same name), or set rescale_betas_zero_snr to false",
        )


def prediction_named(name: str) -> Prediction:
    """The prediction that a diffusers config calls `name`: epsilon, v_prediction or sample."""
    if name not in PREDICTIONS:
        raise FewstepError(f"unknown prediction_type {name!r}", f"known ones: {', '.join(PREDICTIONS)}")
    return PREDICTIONS[name]


def eps_from_x_0(x_0: Tensor, x_t: Tensor, level: NoiseLevel) -> Tensor:
    """The noise in x_t, given x_0: (x_t - alpha x_0) / sigma. Needs sigma > 0."""
    return (x_t - level.alpha * x_0) / level.sigma
