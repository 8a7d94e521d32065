"""Draws a batch of pictures on an engine: noise, the sampling loop, the decoder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from fewstep.diffusion.clipping import ClippedDenoiser
from fewstep.diffusion.consistency import ConsistencyDenoiser
from fewstep.diffusion.guidance import Conditioning, Denoiser, Evaluations, GuidedDenoiser, Network, with_guidance
from fewstep.diffusion.sampler import sample as sample_latents
from fewstep.diffusion.sampler import sampling_levels
from fewstep.diffusion.schedule import NoiseLevel
from fewstep.diffusion.solvers.base import Noise
from fewstep.engines import Engine, Facts
from fewstep.errors import FewstepError, option
from fewstep.images import to_image
from fewstep.session.canvas import Canvas, Keeping
from fewstep.session.decoders import Decode
from fewstep.session.plan import Plan
from fewstep.session.recipe import PictureRecipe

DECODED_AT_ONCE = 64 * 64  # latent pixels that are decoded together: one 512 x 512 picture, or several smaller ones
Lap = Callable[[str], object]  # called when the part "text", "network" or "decoder" of a batch has ended
OnEstimate = Callable[[int, Tensor], object]  # called with the number of steps done, and the estimate x_0 (B, C, h, w)


class Picture(NamedTuple):
    """One picture, and its recipe, which is enough to draw it again."""

    pixels: Tensor  # (3, H, W) in [-1, 1], on the CPU
    recipe: PictureRecipe

    @property
    def image(self) -> Image.Image:
        """The picture as an RGB image."""
        return to_image(self.pixels)


class PictureBatch(NamedTuple):
    """The inputs of B pictures that are drawn together."""

    conditioning: Conditioning  # for B pictures
    empty: (
        Conditioning | None
    )  # the other branch of guidance, if there is one (empty or negative prompt), for B pictures
    noise: Noise  # draws (B, C, h, w)


@dataclass
class Watching:
    """A denoiser that remembers its last estimate."""

    denoise: Denoiser
    x_0: Tensor | None = None

    def __call__(self, x_t: Tensor, level: NoiseLevel) -> Tensor:
        """The estimate of x_0, of the shape of x_t (B, C, H, W)."""
        self.x_0 = self.denoise(x_t, level)
        return self.x_0


def denoiser_of(
    facts: Facts,
    network: Network,
    plan: Plan,
    conditioning: Conditioning,
    empty: Conditioning | None,
    evaluations: Evaluations,
) -> Denoiser:
    """The denoiser that the plan's solver asks. conditioning, empty: for B pictures. evaluations: counts the rows."""
    guidance_scale = plan.guidance_scale
    if plan.embeds_guidance:
        conditioning, guidance_scale = with_guidance(conditioning, guidance_scale), 1.0
    denoise: Denoiser = GuidedDenoiser(network, facts.prediction, conditioning, empty, guidance_scale, evaluations)
    if facts.clip is not None:
        denoise = ClippedDenoiser(denoise, facts.clip)
    return ConsistencyDenoiser(denoise) if plan.consistency else denoise


@torch.no_grad()
def draw_latents(
    engine: Engine,
    network: Network,
    plan: Plan,
    canvas: Canvas,
    batch: PictureBatch,
    on_estimate: OnEstimate,
) -> tuple[Tensor, int]:
    """Latents (B, C, h, w) of a batch, and the number of network rows.

    Drawing begins from noise, or from the canvas with the noise of the first level.
    """
    facts, evaluations = engine.facts, Evaluations()
    denoise = denoiser_of(facts, network, plan, batch.conditioning, batch.empty, evaluations)
    levels = sampling_levels(facts.schedule, plan.timesteps, device=engine.device)
    x = batch.noise()
    if canvas.start is not None:
        x = levels[0].alpha * canvas.start + levels[0].sigma * x
    if canvas.latents is not None and canvas.area is not None and not facts.inpaints:
        denoise = Keeping(denoise, canvas.latents, canvas.area)
    watching = Watching(denoise)

    def on_step(index: int, level: NoiseLevel, x: Tensor) -> None:
        assert watching.x_0 is not None
        on_estimate(index + 1, watching.x_0)

    latents = sample_latents(watching, plan.solver, facts.schedule, levels, x, batch.noise, on_step)
    return latents, evaluations.rows


def decoded(decode: Decode, latents: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) on the CPU. Raises FewstepError for latents that are not finite; they would give black."""
    if not latents.isfinite().all():
        hint = f"use {option('dtype')} fp32 or bf16, a lower {option('guidance_scale')}, or lower weights of LoRAs"
        raise FewstepError("the network's output is not finite", hint)
    parts = torch.split(latents, max(1, DECODED_AT_ONCE // latents[0, 0].numel()))
    return torch.cat([decode(part) for part in parts]).cpu()


def previewed(decode: Decode, latents: Tensor) -> list[Image.Image]:
    """Preview pictures of an estimate of x_0, (B, C, h, w)."""
    return [to_image(pixels) for pixels in decoded(decode, latents)]


def batches(prompts: Sequence[str], size: int) -> list[tuple[int, Sequence[str]]]:
    """The prompts in parts of `size`, each with the number of its first prompt."""
    return [(first, prompts[first : first + size]) for first in range(0, len(prompts), size)]
