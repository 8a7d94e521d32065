"""What an engine is: it runs the networks of one model, and does nothing else."""

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
from fewstep.models.plugging import WeightedAdapter

OPTIONAL = frozenset({"loras", "live_lora", "controlnet", "nag_scale", "image"})  # fields that not every engine takes


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do, known before anything is loaded."""

    fields: frozenset[str] = OPTIONAL  # those of OPTIONAL that it takes, of Where and Draw
    replug_at_once: bool = True  # other LoRAs need no building anew


@dataclass(frozen=True)
class Facts:
    """What a session has to know of a model to plan and to draw."""

    path: Path  # a folder in diffusers' layout, or a single file
    family: str
    schedule: NoiseSchedule
    prediction_type: str
    recipe: Recipe | None  # of a model that was distilled whole
    height: int  # pixels of the pictures it was trained on
    width: int
    factor: int  # pixels per latent, in each direction
    channels: int  # of the latents
    inpaints: bool  # whether the network takes a mask and what is kept, beside x

    @property
    def prediction(self) -> Prediction:
        """What the network's output means."""
        return prediction_named(self.prediction_type)

    @property
    def size(self) -> int:
        """Side of the square pictures it was trained on, in pixels."""
        return min(self.height, self.width)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of the latents of a picture of so many pixels."""
        return self.channels, height // self.factor, width // self.factor


@dataclass(frozen=True)
class NetworkOptions:
    """How the network is to run for some pictures."""

    nag_scale: float = 1.0  # of attention to the negative text that the conditioning holds; 1 = off
    control_scale: float = 1.0  # of the ControlNet's residuals, where the conditioning holds a picture for it


class Engine(Protocol):
    """Runs the networks of one model; what it cannot do, `supports` says before anything is loaded."""

    supports: ClassVar[Capabilities]

    @classmethod
    def open(cls, where: Where) -> "Engine":
        """The engine with the model that `where` names. Raises FewstepError for what is missing or does not fit."""

    @property
    def facts(self) -> Facts:
        """Of the model."""

    @property
    def shapes(self) -> Mapping[str, ModuleShape]:
        """Every module that a LoRA can adapt: its name in checkpoints -> the shape of its weight."""

    @property
    def dtype(self) -> str:
        """The precision that the network computes in: fp32, bf16, fp16."""

    @property
    def device(self) -> torch.device:
        """Where x and the conditioning of `network` are to be."""

    def embed(self, texts: Sequence[str], height: int, width: int) -> Conditioning:
        """What the texts (B of them) tell the network of pictures of so many pixels."""

    def network(self, options: NetworkOptions) -> AbstractContextManager[Network]:
        """The network with these options, for the time of a block: it is left as it was found."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Latents (B, C, h, w) float32, scaled, of pixels (B, 3, H, W) in [-1, 1]."""

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) float32 in [-1, 1] of scaled latents (B, C, h, w)."""

    def hides(self, pixels: Tensor) -> bool:
        """Whether the safety checker that the model brings would not show the picture (3, H, W) in [-1, 1]."""

    def original_weight(self, module: str) -> Tensor:
        """W0 of a module, whatever is plugged in."""

    def plug(self, terms: Sequence[WeightedAdapter]) -> None:
        """Make the model's weights W0 + sum_i w_i B_i A_i, whatever was plugged in before.

        An error leaves the weights as they were.
        """
