"""Draws a sequence of frames: at every tick one network call takes each of the frames under way a step on.

With N steps, N frames are under way, each a step behind the one before. So a frame comes out at every tick, after N
ticks, and the network sees batches of N frames (StreamDiffusion, arXiv 2312.12491, section 3.1).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.configs import Draw
from fewstep.diffusion.guidance import Conditioning, Evaluations, Network
from fewstep.diffusion.sampler import ImageNoise, sampling_levels
from fewstep.diffusion.schedule import NoiseLevel
from fewstep.diffusion.solvers.base import run_step
from fewstep.engines import Engine
from fewstep.errors import UsageError, option
from fewstep.session.canvas import Canvas, canvas_of
from fewstep.session.drawing import denoiser_of
from fewstep.session.plan import Plan

ANY_FRAME = b"frame"  # stands in a Draw for the frames to come
STILL = ("mask", "outpaint", "control_image")  # fields of Draw that a sequence does not take


@dataclass
class Frame:
    """A frame under way."""

    draw: Draw  # which begins from it
    canvas: Canvas
    noise: ImageNoise
    x: Tensor  # (1, C, h, w) at the level of its step
    step: int = 0  # how many it has taken


def check_stream(draw: Draw, plan: Plan) -> None:
    """Raise UsageError for what a sequence of frames cannot be drawn with."""
    for field in STILL:
        if getattr(draw, field) is not None:
            raise UsageError(f"a sequence does not take {option(field)}", "leave it out")
    if len(draw.prompts) != 1 or draw.count != 1:
        raise UsageError("a sequence has one prompt, and one picture a frame", "give one prompt", "prompts")
    if plan.solver.multistep:
        raise UsageError(
            f"{plan.solver_name} remembers earlier steps, which frames under way at once cannot",
            f"use {option('solver')} lcm, tcd, ddim or dpm-solver++2s",
        )


class Stream:
    """Frames under way on one engine."""

    def __init__(
        self, engine: Engine, network: Network, draw: Draw, plan: Plan, text: Conditioning, empty: Conditioning | None
    ) -> None:
        """text, empty: the conditioning of one picture, and of the other branch of guidance."""
        self.engine, self.network, self.draw, self.plan, self.text, self.empty = (
            engine,
            network,
            draw,
            plan,
            text,
            empty,
        )
        self.levels = sampling_levels(engine.facts.schedule, plan.timesteps, device=engine.device)
        self.evaluations = Evaluations()

    @torch.no_grad()
    def results(self, frames: Iterable[bytes]) -> Iterator[Frame]:
        """Every frame, in order, once it is at the clean end."""
        under_way: list[Frame] = []
        for frame in frames:
            under_way.append(self.entered(frame))
            self.tick(under_way)
            yield from self.finished(under_way)
        while under_way:
            self.tick(under_way)
            yield from self.finished(under_way)

    def entered(self, frame: bytes) -> Frame:
        """A frame at the noisiest level. Each has the noise of the same seed, so that what stands still stays."""
        draw = self.draw.model_copy(update={"image": frame})
        canvas = canvas_of(draw, self.engine)
        shape = self.engine.facts.latent_shape(canvas.height, canvas.width)
        noise = ImageNoise((self.draw.seed,), shape, self.engine.device)
        first, x = self.levels[0], noise()
        if canvas.start is not None:
            x = first.alpha * canvas.start + first.sigma * x
        return Frame(draw, canvas, noise, x)

    def tick(self, frames: Sequence[Frame]) -> None:
        """Take every frame one step on, all in one call of the network."""
        plan, facts = self.plan, self.engine.facts
        empty = None if self.empty is None else self.empty.expand(len(frames))
        text = self.text.expand(len(frames))
        denoise = denoiser_of(facts, self.network, plan, text, empty, self.evaluations)
        s, t = (joined([self.levels[frame.step + one] for frame in frames]) for one in (0, 1))
        x = torch.cat([frame.x for frame in frames])

        def noise() -> Tensor:
            return torch.cat([frame.noise() for frame in frames])

        x, _ = run_step(plan.solver.step(x, plan.solver.levels(facts.schedule, s, t), None, noise), denoise)
        for i, frame in enumerate(frames):
            frame.x, frame.step = x[i : i + 1], frame.step + 1

    def finished(self, frames: list[Frame]) -> Iterator[Frame]:
        """Take out the first frame if it has reached the clean end."""
        if frames and frames[0].step == len(self.levels) - 1:
            yield frames.pop(0)


def joined(levels: Sequence[NoiseLevel]) -> NoiseLevel:
    """Levels for one image each as one for all of them."""
    return NoiseLevel(*(torch.cat(parts) for parts in zip(*levels, strict=True)))
