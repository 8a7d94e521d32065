"""The networks of a model as graphs: functions of named tensors, which other programs' compilers read.

Names of parts, inputs and outputs are those of optimum-intel's folders, which OpenVINO GenAI reads too.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fewstep.models.model import Model

ANY = -1  # in a shape: a size that is known only when the graph runs
TEXT_GRAPHS = ("text_encoder", "text_encoder_2")
ENCODER, DECODER = "vae_encoder", "vae_decoder"
SOURCES = {"unet": "unet", ENCODER: "vae", DECODER: "vae", **{name: name for name in TEXT_GRAPHS}}  # graph -> part
ODD = 17  # side of an example of latents: no multiple of 2, so that the graph takes sizes that are none either


class Graph(NamedTuple):
    """One network as a function of named tensors. It computes in float32."""

    module: nn.Module  # forward takes the inputs by name
    example: Mapping[str, Tensor]  # input -> a value
    shapes: Mapping[str, tuple[int, ...]]  # input -> its shape, in which ANY is a size that may change
    outputs: tuple[str, ...]  # names, in order
    calibration: Sequence[Mapping[str, Tensor]] = ()  # inputs such as it gets when it draws, if it is to be in int8


class NetworkGraph(nn.Module):
    """The UNet's output for x (B, C, H, W), t (B,) and the text (B, L, D)."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        timestep_cond: Tensor | None = None,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        """timestep_cond: (B, E), guidance as an input. text_embeds, time_ids: SDXL's pooled text and sizes."""
        added = None if text_embeds is None else {"text_embeds": text_embeds, "time_ids": time_ids}
        output: Tensor = self.unet(
            sample,
            timestep,
            encoder_hidden_states,
            timestep_cond=timestep_cond,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return output


class TextGraph(nn.Module):
    """A text encoder's last hidden states and pooled text; with `hidden`, then the hidden states of all layers."""

    def __init__(self, encoder: Any, hidden: bool) -> None:
        super().__init__()
        self.encoder, self.hidden = encoder, hidden

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """input_ids: (B, L)."""
        output = self.encoder(input_ids, output_hidden_states=self.hidden)
        first = (output[0], output[1])
        return (*first, *output.hidden_states) if self.hidden else first


class EncoderGraph(nn.Module):
    """Mean and log variance of the posterior over latents, (B, 2 C, h, w), for pixels (B, 3, H, W) in [-1, 1]."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, sample: Tensor) -> Tensor:
        """sample: the pixels."""
        parameters: Tensor = self.vae.encode(sample).latent_dist.parameters
        return parameters


class DecoderGraph(nn.Module):
    """Pixels (B, 3, H, W) of unscaled latents (B, C, h, w)."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent_sample: Tensor) -> Tensor:
        """latent_sample: the latents."""
        pixels: Tensor = self.vae.decode(latent_sample, return_dict=False)[0]
        return pixels


def graph_names(model: Model) -> tuple[str, ...]:
    """The names of the model's graphs."""
    texts = TEXT_GRAPHS if model.text_encoder_2 is not None else TEXT_GRAPHS[:1]
    return (*texts, "unet", DECODER, ENCODER)


def graph_of(model: Model, name: str, whole_timesteps: bool = False) -> Graph:
    """The graph of that name, of a model in float32 on the CPU.

    whole_timesteps: the UNet takes t as int64, as other programs give it; else as float32.
    """
    if name in TEXT_GRAPHS:
        return text_graph(model, name)
    if name == "unet":
        return network_graph(model, whole_timesteps)
    channels = 3 if name == ENCODER else int(model.vae.config.latent_channels)
    given, output = ("sample", "latent_parameters") if name == ENCODER else ("latent_sample", "sample")
    side = ODD * model.factor if name == ENCODER else ODD
    module = EncoderGraph(model.vae) if name == ENCODER else DecoderGraph(model.vae)
    shapes = {given: (ANY, channels, ANY, ANY)}
    return Graph(module, {given: torch.zeros(2, channels, side, side)}, shapes, (output,))


def text_graph(model: Model, name: str) -> Graph:
    """The graph of a text encoder. SDXL's two give all hidden states too."""
    encoder, sdxl = getattr(model, name), model.text_encoder_2 is not None
    names = ("text_embeds", "last_hidden_state") if name == "text_encoder_2" else ("last_hidden_state", "pooler_output")
    length = int(encoder.config.max_position_embeddings)
    hidden = [f"hidden_states.{i}" for i in range(encoder.config.num_hidden_layers + 1)] if sdxl else []
    ids = torch.full((2, length), int(encoder.config.eos_token_id))
    return Graph(TextGraph(encoder, sdxl), {"input_ids": ids}, {"input_ids": (ANY, ANY)}, (*names, *hidden))


def network_graph(model: Model, whole_timesteps: bool) -> Graph:
    """The graph of the UNet, with the inputs that this UNet takes."""
    config, rows = model.unet.config, 2
    widths = [int(encoder.config.hidden_size) for encoder in (model.text_encoder, model.text_encoder_2) if encoder]
    length, width = int(model.text_encoder.config.max_position_embeddings), sum(widths)
    example = {
        "sample": torch.zeros(rows, int(config.in_channels), ODD, ODD),
        "timestep": torch.full((rows,), 999, dtype=torch.int64 if whole_timesteps else torch.float32),
        "encoder_hidden_states": torch.zeros(rows, length, width),
    }
    shapes = {
        "sample": (ANY, int(config.in_channels), ANY, ANY),
        "timestep": (ANY,),
        "encoder_hidden_states": (ANY, ANY, width),
    }
    extra = {}
    if model.embeds_guidance:
        extra["timestep_cond"] = int(config.time_cond_proj_dim)
    if model.text_encoder_2 is not None:
        extra |= {"text_embeds": int(model.text_encoder_2.config.projection_dim), "time_ids": 6}
    example |= {name: torch.zeros(rows, size) for name, size in extra.items()}
    return Graph(NetworkGraph(model.unet), example, shapes | {n: (ANY, s) for n, s in extra.items()}, ("out_sample",))
