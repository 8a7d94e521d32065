"""The inputs that a UNet gets while few pictures are drawn. From them a quantization learns the range of each value."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fewstep.diffusion.guidance import GuidedDenoiser, with_guidance
from fewstep.diffusion.sampler import ImageNoise, sample, sampling_levels
from fewstep.diffusion.schedule import trailing_grid
from fewstep.diffusion.solvers import SOLVERS
from fewstep.engines.graphs.parts import GraphNetwork
from fewstep.models.inpainting import mask_and_latents
from fewstep.models.model import Model
from fewstep.models.network import UNetNetwork

PROMPTS = ("a white horse", "a train", "a castle", "a red rose", "a drum", "a crying face", "a hamburger", "a moon")
STEPS = 4  # of DDIM, without guidance: few-step pictures are drawn at such timesteps
SEED = 1000  # of the first picture


@torch.no_grad()
def calibration_inputs(model: Model, network: nn.Module) -> list[dict[str, Tensor]]:
    """The inputs of every call while PROMPTS are drawn at the model's own size: input -> its value, for one row.

    model: in float32 on the CPU, with its LoRAs folded in. network: of the model's UNet, a graph's module.
    """
    recorded = list[dict[str, Tensor]]()

    def running(inputs: Mapping[str, Tensor], exact: bool = False) -> dict[str, Tensor]:
        recorded.append(dict(inputs))
        return {"out_sample": network(**inputs)}

    unet = UNetNetwork(GraphNetwork(lambda name: running, model.unet.config))
    for number, prompt in enumerate(PROMPTS):
        draw(model, unet, prompt, SEED + number)
    return recorded


def draw(model: Model, unet: UNetNetwork, prompt: str, seed: int) -> Tensor:
    """Latents (1, C, h, w) of a picture. A network that takes guidance gets 1; an inpainting one draws everything."""
    height, width = model.height_and_width
    conditioning = model.embed([prompt], height, width)
    if model.embeds_guidance:
        conditioning = with_guidance(conditioning, 1.0)
    if model.inpaints:
        everything = torch.zeros(1, 3, height, width), torch.ones(1, 1, height, width)
        conditioning = conditioning._replace(mask_and_latents=mask_and_latents(model, *everything))
    denoise = GuidedDenoiser(unet, model.prediction, conditioning)
    levels = sampling_levels(model.schedule, trailing_grid(STEPS, len(model.schedule)))
    noise = ImageNoise([seed], model.latent_shape(height, width))
    return sample(denoise, SOLVERS["ddim"], model.schedule, levels, noise(), noise)
