"""What every arrangement of a benchmark draws, and how many floating-point operations it takes."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fewstep.configs import BenchConfig, Draw, build
from fewstep.diffusion.guidance import Conditioning, with_guidance
from fewstep.engines.torch import TorchEngine
from fewstep.errors import UsageError
from fewstep.events import ignore, telling
from fewstep.families import FAMILIES
from fewstep.models.load import takes_text
from fewstep.models.model import Model
from fewstep.models.network import UNetNetwork
from fewstep.models.random_weights import random_folder, random_lora
from fewstep.models.single_file import save_folder
from fewstep.session import Plan, Session
from fewstep.session.decoders import Tiny, decoder_of
from fewstep.session.loras import default_loras

PROMPT = "a red fox"
RANK = 64  # of a random LoRA


class Flops(NamedTuple):
    """Floating-point operations for one picture; an addition and a multiplication are two."""

    text: int  # the prompt through the text encoders
    step: int  # a network call, with both branches if there is guidance
    decoder: int

    def total(self, steps: int) -> int:
        """All of a picture."""
        return self.text + steps * self.step + self.decoder


class BenchPlan(NamedTuple):
    """What is drawn."""

    folder: Path  # the model in diffusers' layout, which every arrangement reads
    spare: Path  # a folder for files that nobody keeps
    loras: tuple[str, ...]
    draw: Draw  # one picture
    plan: Plan
    prediction_type: str
    points: int  # timesteps of the training grid
    device: str
    dtype: str  # of fewstep
    decoder: str  # of fewstep
    flops: Flops  # with the model's own decoder
    own_flops: Flops  # with fewstep's decoder


@telling(ignore)
def planned(config: BenchConfig, spare: Path) -> BenchPlan:
    """The plan, with a model in the folder `spare` if it is random or a single file.

    Raises FewstepError for a model or LoRA that is missing or does not fit, and for impossible options.
    """
    model, loras = config.model, config.loras
    if not takes_text(model):
        raise UsageError(
            f"{model} is a model in pixel space, which diffusers draws nothing with in few steps",
            "measure a model that takes text; fewstep compare times this one",
        )
    if config.random is not None:
        family = FAMILIES[config.random]
        model = str(random_folder(spare / config.random, family))
        loras = (str(random_lora(spare / "lora.safetensors", family, RANK)),) if loras is None else loras
    loras = default_loras(model, "auto") if loras is None else loras
    session = Session(model, loras, engine="torch", dtype="fp32", device="cpu")
    facts = session.facts
    solver = "auto" if any(recipe.accelerates for recipe in session.recipes) else "lcm"
    draw = build(
        Draw,
        prompts=(PROMPT,),
        solver=solver,
        steps=config.steps,
        guidance_scale=config.guidance_scale,
        width=config.width or facts.width,
        height=config.height or facts.height,
    )
    plan = session.plan(draw)
    assert isinstance(session.engine, TorchEngine)
    parts, folder = session.engine.model, facts.path
    if not folder.is_dir():
        folder = spare / "model"
        save_folder(parts, folder)
    flops = own = count_flops(parts, draw.height or 0, draw.width or 0, plan.nfe // plan.steps)
    decoder = decoder_of(config.decoder, session.engine)
    if isinstance(decoder, Tiny):
        own = flops._replace(decoder=tiny_flops(decoder, parts.latent_shape(draw.height or 0, draw.width or 0)))
    return BenchPlan(
        folder,
        spare,
        loras,
        draw,
        plan,
        facts.prediction_type,
        len(facts.schedule) // plan.k,
        config.device,
        config.dtype,
        config.decoder,
        flops,
        own,
    )


def count_flops(model: Model, height: int, width: int, rows: int) -> Flops:
    """The operations of matrix products and convolutions, counted on the model's own networks without their weights.

    rows: through the network a step.
    """
    channels, h, w = model.latent_shape(height, width)
    conditioning = model.embed([PROMPT], height, width).expand(rows).to("meta")
    encoders = [encoder for encoder in (model.text_encoder, model.text_encoder_2) if encoder is not None]
    with torch.device("meta"), torch.no_grad():
        if model.inpaints:
            conditioning = conditioning._replace(mask_and_latents=torch.zeros(rows, 1 + channels, h, w))
        if model.embeds_guidance:
            conditioning = with_guidance(conditioning, 1.0)
        unet = type(model.unet).from_config(model.unet.config)
        vae = type(model.vae).from_config(model.vae.config)
        tokens = torch.zeros(1, conditioning.text.shape[1], dtype=torch.long)
        return Flops(
            text=sum(_counted(type(encoder)(encoder.config), tokens) for encoder in encoders),
            step=_counted(UNetNetwork(unet), torch.zeros(rows, channels, h, w), torch.zeros(rows), conditioning),
            decoder=_counted(vae.decode, torch.zeros(1, channels, h, w)),
        )


def tiny_flops(decoder: Tiny, latents: tuple[int, int, int]) -> int:
    """The operations of a tiny decoder for one picture with latents (C, h, w)."""
    with torch.device("meta"), torch.no_grad():
        network = type(decoder.network).from_config(decoder.network.config)
        return _counted(network.decode, torch.zeros(1, *latents))


def _counted(network: Any, *inputs: Tensor | Conditioning) -> int:
    """The operations of a call."""
    with FlopCounterMode(display=False) as counter:
        network(*inputs)
    return int(counter.get_total_flops())
