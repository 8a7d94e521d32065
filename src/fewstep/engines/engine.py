"""The engine protocol: an engine runs the networks of one model, and does nothing else."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from fewstep.configs import Where
from fewstep.diffusion.guidance import Conditioning, Network
from fewstep.diffusion.prediction import Prediction, prediction_named
from fewstep.diffusion.schedule import NoiseSchedule
from fewstep.families import ModuleShape
from fewstep.lora.recipe import Recipe
from fewstep.models.model import Model
from fewstep.models.plugging import WeightedAdapter

OPTIONAL = frozenset(
    {"loras", "live_lora", "controlnet", "nag_scale", "image", "offload"}
)  # fields that not every engine takes


@dataclass(frozen=True)
class Capabilities:
    """The abilities of an engine, known before anything is loaded."""

    fields: frozenset[str] = OPTIONAL  # the fields of OPTIONAL that it takes, from Where and Draw
    int8: bool = False  # it computes in int8
    replug_at_once: bool = True  # it can change LoRAs without building the model again


@dataclass(frozen=True)
class Facts:
    """Facts about a model that a session needs to plan and to draw."""

    path: Path  # a folder in diffusers' layout, or a single file
    family: str
    schedule: NoiseSchedule
    prediction_type: str
    recipe: Recipe | None  # recipe of a model that was distilled whole; None for other models
    height: int  # of the pictures it was trained on, in pixels
    width: int
    factor: int  # pixels per latent, in each direction
    channels: int  # of the latents
    inpaints: bool  # whether the network takes a mask and the kept latents as well as x
    embeds_guidance: bool = False  # whether the network takes guidance as an input
    takes_text: bool = True  # False for a model in pixel space: it has no prompts, so there is nothing to guide
    multiple: int | None = None  # a picture's sides are multiples of this; None = of the factor
    clip: float | None = None  # sampling cuts estimates of x_0 to [-clip, clip]; None = it leaves them as they are

    @property
    def prediction(self) -> Prediction:
        """The meaning of the network's output."""
        return prediction_named(self.prediction_type)

    @property
    def size(self) -> int:
        """The side, in pixels, of the square pictures that the model was trained on."""
        return min(self.height, self.width)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """The shape (C, h, w) of the latents of a picture of height x width pixels."""
        return self.channels, height // self.factor, width // self.factor


def facts_of(model: Model) -> Facts:
    """Facts about a model. Its networks need no weights."""
    return Facts(
        model.path,
        model.family,
        model.schedule,
        model.prediction_type,
        model.recipe,
        *model.height_and_width,
        model.factor,
        model.latent_channels,
        model.inpaints,
        model.embeds_guidance,
        model.takes_text,
        model.multiple,
        model.clip,
    )


@dataclass(frozen=True)
class NetworkOptions:
    """Options of the network for one group of pictures."""

    nag_scale: float = 1.0  # strength of NAG against the negative text in the conditioning; 1 = off
    control_scale: float = 1.0  # factor of the ControlNet's residuals, when the conditioning holds a picture for it


class Engine(Protocol):
    """Runs the networks of one model. `supports` says what it can do before anything is loaded."""

    supports: ClassVar[Capabilities]

    @classmethod
    def open(cls, where: Where) -> "Engine":
        """The engine with the model that `where` names. Raises FewstepError when a part is missing or does not fit."""

    @property
    def facts(self) -> Facts:
        """Facts about the model."""

    @property
    def shapes(self) -> Mapping[str, ModuleShape]:
        """Module name in checkpoints -> shape of its weight, for every module that a LoRA can adapt."""

    @property
    def dtype(self) -> str:
        """The precision in which the network computes: fp32, bf16, fp16 or int8."""

    @property
    def device(self) -> torch.device:
        """The device on which `network` expects x and the conditioning."""

    def embed(self, texts: Sequence[str], height: int, width: int) -> Conditioning:
        """The conditioning of B texts, for pictures of height x width pixels."""

    def network(self, options: NetworkOptions) -> AbstractContextManager[Network]:
        """The network with these options, inside a `with` block. After the block it is as it was before."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w), float32, of pixels (B, 3, H, W) in [-1, 1]."""

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), float32 in [-1, 1], of scaled latents (B, C, h, w)."""

    def hides(self, pixels: Tensor) -> bool:
        """Whether the model's own safety checker rejects the picture, (3, H, W) in [-1, 1]."""

    def original_weight(self, module: str) -> Tensor:
        """W0 of a module: its weight without any LoRA, whatever is plugged in."""

    def plug(self, terms: Sequence[WeightedAdapter]) -> None:
        """Set the model's weights to W0 + sum_i w_i B_i A_i, whatever was plugged in before.

        An error leaves the weights as they were.
        """
