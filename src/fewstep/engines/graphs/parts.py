"""Graphs in the places of a model's networks: called as torch's networks are, in float32 on the CPU."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fewstep.errors import FewstepError, option
from fewstep.models.graphs import DECODER, ENCODER


class Running(Protocol):
    """A graph that is ready to run. Inputs of any size that its graph takes are allowed at any call."""

    def __call__(self, inputs: Mapping[str, Tensor], exact: bool = False) -> dict[str, Tensor]:
        """Output -> its value, for input -> its value, on the CPU. exact: compute in float32."""


def arrays_of(inputs: Mapping[str, Tensor], whole: Collection[str]) -> dict[str, Any]:
    """The inputs as NumPy's arrays, without a copy where possible. whole: names of inputs that are whole numbers.

    Raises FewstepError for a timestep between two of the training grid where only whole ones are taken.
    """
    arrays = {}
    for name, x in inputs.items():
        if name in whole and x.is_floating_point():
            if (x != x.round()).any():
                raise FewstepError(
                    "the exported network takes whole timesteps, and this solver steps between them",
                    f"use {option('solver')} ddim, dpm-solver++ or the solver of the model's recipe",
                )
            x = x.to(torch.int64)
        arrays[name] = x.detach().contiguous().numpy()
    return arrays


Graphs = Callable[[str], Running]  # name of a graph -> the graph, made ready when it is first asked for


class GraphNetwork:
    """In the place of a UNet."""

    dtype = torch.float32

    def __init__(self, graphs: Graphs, config: Any) -> None:
        """config: the UNet's."""
        self._graphs, self.config = graphs, config

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        timestep_cond: Tensor | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """The output (B, C, H, W), as diffusers' UNet2DConditionModel returns it without a dict."""
        inputs = {"sample": sample, "timestep": timestep.float(), "encoder_hidden_states": encoder_hidden_states}
        if timestep_cond is not None:
            inputs["timestep_cond"] = timestep_cond
        return (self._graphs("unet")(inputs | dict(added_cond_kwargs or {}))["out_sample"],)


class EncodedText(tuple[Tensor, ...]):
    """A text encoder's outputs, as transformers returns them."""

    hidden_states: tuple[Tensor, ...] = ()


class GraphText:
    """In the place of a text encoder."""

    device = torch.device("cpu")

    def __init__(self, graphs: Graphs, name: str, config: Any) -> None:
        """name: of the graph. config: the text encoder's."""
        self._graphs, self._name, self.config = graphs, name, config

    def __call__(self, input_ids: Tensor, output_hidden_states: bool = False) -> EncodedText:
        """The outputs for token ids (B, L)."""
        outputs = list(self._graphs(self._name)({"input_ids": input_ids}).values())
        encoded = EncodedText(outputs[:2])
        encoded.hidden_states = tuple(outputs[2:])
        return encoded


class Posterior(NamedTuple):
    """What is used here of a distribution of latents."""

    mean: Tensor
    std: Tensor


class EncodedPixels(NamedTuple):
    """What an autoencoder's encoder returns."""

    latent_dist: Posterior


class DecodedLatents(NamedTuple):
    """What an autoencoder's decoder returns."""

    sample: Tensor


class GraphAutoencoder:
    """In the place of an AutoencoderKL. After `to(torch.float32)` it computes in float32."""

    device = torch.device("cpu")

    def __init__(self, graphs: Graphs, config: Any, dtype: torch.dtype) -> None:
        """config: the autoencoder's. dtype: the type in which the graphs compute."""
        self._graphs, self.config, self.dtype = graphs, config, dtype

    def to(self, dtype: torch.dtype) -> "GraphAutoencoder":
        """Compute in this type from now on."""
        self.dtype = dtype
        return self

    def encode(self, pixels: Tensor) -> EncodedPixels:
        """The posterior for pixels (B, 3, H, W) in [-1, 1]."""
        parameters = self._run(ENCODER, "sample", pixels)["latent_parameters"]
        mean, log_variance = parameters.chunk(2, dim=1)
        return EncodedPixels(Posterior(mean, (log_variance.clamp(-30, 20) / 2).exp()))  # as diffusers' class cuts it

    def decode(self, latents: Tensor) -> DecodedLatents:
        """Pixels (B, 3, H, W) of unscaled latents (B, C, h, w)."""
        return DecodedLatents(self._run(DECODER, "latent_sample", latents)["sample"])

    def _run(self, name: str, given: str, x: Tensor) -> dict[str, Tensor]:
        return self._graphs(name)({given: x.float()}, exact=self.dtype == torch.float32)
