"""Training data without images: pictures that the model draws after captions, kept as latents in the cache.

x_0 is the end of the bare model's own guided trajectory in a few steps, from noise of the run's seed. TLCM (arXiv
2406.05768) learns from such pictures too. They are never decoded.
"""

import random
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from fewstep.assets import GENERAL, MODEL, NAMES
from fewstep.configs import DistillConfig
from fewstep.data.cache import Encoded
from fewstep.data.cache.batches import embedded
from fewstep.data.cache.chunks import cache_file, chunks_of, fill, is_filled, text_files
from fewstep.data.cache.encoded import SIZES, VALUES, in_chunks
from fewstep.data.cache.processes import this_process
from fewstep.data.prompts import Prompt, list_that_ships, listed_prompts, shipped_prompts
from fewstep.diffusion.sampler import ImageNoise
from fewstep.engines import NetworkOptions
from fewstep.engines.torch import TorchEngine
from fewstep.errors import FewstepError, UsageError, option
from fewstep.events import Progress, doing, in_minutes, note, tell
from fewstep.io import sha256_bytes
from fewstep.models.load import DTYPES
from fewstep.models.model import TEXT_PARTS, Model, parts_sha256
from fewstep.models.quiet import quiet
from fewstep.models.text import sizes_of
from fewstep.session.canvas import Canvas
from fewstep.session.drawing import PictureBatch, draw_latents
from fewstep.session.plan import Plan, plan_sampling
from fewstep.training.adapt import training_size, usual_guidance

T = TypeVar("T")
SOLVER = "dpm-solver++"
COUNT = 1000  # pictures, unless there are more captions
CHUNK = 32  # pictures in a cache file; a run that is stopped loses at most these
LATENT_PIXELS = 4 * 64 * 64  # of pictures that are drawn at once: four of 512 x 512 pixels, or more of smaller ones
FORECAST = 50  # the fewest network calls before which a note says how long they take


class Wish(NamedTuple):
    """A picture to draw."""

    caption: str
    seed: int


@dataclass(frozen=True)
class Artist:
    """A model that draws pictures to train on, with its network as it is in the run."""

    model: Model
    plan: Plan
    size: int  # pixels
    dtype: torch.dtype
    full: bool  # whether the run trains all weights, which are then in float32 whatever the precision is

    @property
    def at_once(self) -> int:
        """How many pictures are drawn together. A picture's last bits depend on it, so it follows from the size."""
        return min(CHUNK, max(1, LATENT_PIXELS // (self.size // self.model.factor) ** 2))

    def files(self, chunks: Sequence[Sequence[Wish]]) -> list[Path]:
        """The cache file for each chunk. Its name is a hash of all that the pictures depend on but the device."""
        model, plan = self.model, self.plan
        network = f"{parts_sha256(model.path, ('unet', 'scheduler', *TEXT_PARTS))} {model.prediction_type}"
        steps = f"{plan.solver_name} {plan.timesteps} {plan.guidance_scale}"
        kind = f"1 synthetic {network} {steps} {self.dtype} {self.full} {self.size} "
        return [cache_file(kind, [f"{wish.seed} {wish.caption}\0" for wish in chunk]) for chunk in chunks]

    def latents(self, wishes: Sequence[Wish]) -> dict[str, Tensor]:
        """The latents (B, C, h, w) of the pictures, float32, and the sizes (B, 6) that SDXL's network takes."""
        model, size, count = self.model, self.size, len(wishes)
        batch = PictureBatch(
            model.embed([wish.caption for wish in wishes], size, size),
            model.embed([""], size, size).expand(count),
            ImageNoise([wish.seed for wish in wishes], model.latent_shape(size, size), model.device),
        )
        engine = TorchEngine(model)
        with engine.network(NetworkOptions()) as network, self._precision():
            x_0, _ = draw_latents(engine, network, self.plan, Canvas(size, size), batch, lambda step, estimate: None)
        if not x_0.isfinite().all():
            raise FewstepError("a picture that the teacher drew is not finite", f"use {option('precision')} fp32")
        return {VALUES: x_0.float(), SIZES: sizes_of(size, size).repeat(count, 1)}

    def _precision(self) -> AbstractContextManager[object]:
        """The run's precision, inside the block. For a LoRA the weights take it for good, as they do in training."""
        if self.full and self.dtype != torch.float32:
            return torch.autocast(self.model.device.type, self.dtype)
        if self.model.unet.dtype != self.dtype and not self.full:
            with quiet():
                self.model.unet.to(self.dtype)
        return nullcontext()

    def seconds_a_call(self, wishes: Sequence[Wish]) -> float:
        """How long the network takes for a batch. It is called once before, which warms up."""
        probe, begun = replace(self, plan=replace(self.plan, timesteps=self.plan.timesteps[-1:])), 0.0
        for _ in range(2):
            begun = time.perf_counter()
            probe.latents(wishes)
        return time.perf_counter() - begun


def artist_of(config: DistillConfig, model: Model) -> Artist:
    """The model as the artist that `config` asks for. Raises UsageError for a model that cannot be one."""
    if model.inpaints:
        raise UsageError(
            f"{option('synthetic')}: {model.path} is for inpainting, and the masks it learns from need real images",
            f"give it images with {option('data')}",
        )
    scale = usual_guidance(model) if config.synthetic_guidance_scale is None else config.synthetic_guidance_scale
    plan = plan_sampling(model.schedule, (), SOLVER, config.synthetic_steps, scale)
    return Artist(model, plan, training_size(model, config), DTYPES[config.precision], config.full)


def origin_of(config: DistillConfig, model: Model) -> dict[str, object]:
    """How the pictures were made, for the recipe of the result."""
    plan = artist_of(config, model).plan
    prompts = default_list(model) if config.prompt_file is None else config.prompt_file.name
    return {
        "solver": plan.solver_name,
        "steps": plan.steps,
        "guidance_scale": plan.guidance_scale,
        "precision": config.precision,
        "prompts": prompts if model.takes_text else None,
    }


# --- captions -----------------------------------------------------------------------------------------------


def given_captions(config: DistillConfig) -> list[str] | None:
    """The captions of --prompts, or None without the option. Raises FewstepError for a file that cannot be read."""
    return None if config.prompt_file is None else texts_of(listed_prompts(config.prompt_file).prompts)


def default_list(model: Model) -> str:
    """Which of the captions that ship are for this model: emoji's own, or general ones."""
    return MODEL if model.family == MODEL else GENERAL


def default_captions(model: Model) -> list[str]:
    """The captions that ship for this model. Emoji's are those of the drawings, with styles, and names without."""
    if default_list(model) == GENERAL:
        return texts_of(list_that_ships(GENERAL))
    captions = texts_of([*list_that_ships(NAMES), *shipped_prompts().prompts])
    random.Random(0).shuffle(captions)
    return captions


def texts_of(prompts: Sequence[Prompt]) -> list[str]:
    """The prompts as captions."""
    return [prompt.text for prompt in prompts]


def wishes_of(captions: Sequence[str], images: int | None, seed: int) -> list[Wish]:
    """The pictures to draw: so many, of the captions in turn, each with a seed of its own."""
    count = max(COUNT, len(captions)) if images is None else images
    return [Wish(caption, seed + i) for i, caption in enumerate(islice(cycle(captions), count))]


# --- pictures -----------------------------------------------------------------------------------------------


def synthetic_pictures(config: DistillConfig, model: Model, captions: Sequence[str]) -> Encoded:
    """The pictures that the model draws after these captions, from the cache or drawn now, with their embeddings.

    For a LoRA the weights of the model's network are converted to the run's precision if a picture is missing.
    """
    artist = artist_of(config, model)
    wishes = wishes_of(captions, config.images, config.seed)
    chunks = chunks_of(wishes, CHUNK)
    files = artist.files(chunks)
    draw_missing(artist, list(zip(files, chunks, strict=True)))
    words = [[wish.caption for wish in chunk] for chunk in chunks]
    text = text_files(words, model)
    for file, part in zip(text, words, strict=True):
        fill(file, part, lambda captions: embedded(captions, model))
    pictures, embeddings = (in_chunks(paths, len(wishes), CHUNK) for paths in (files, text))
    return Encoded(pictures, embeddings, identity=sha256_bytes(*(path.name.encode() for path in (*files, *text))))


def draw_missing(artist: Artist, places: Sequence[tuple[Path, Sequence[Wish]]]) -> None:
    """Draw the chunks whose files are missing. Several processes begin with different ones. A note tells the time."""
    missing = [(file, chunk) for file, chunk in own_first(places) if not is_filled(file)]
    total = sum(len(chunk) for _, chunk in places)
    done = total - sum(len(chunk) for _, chunk in missing)
    if missing:
        forecast(artist, missing)
    for file, chunk in missing:
        tell(Progress("drawing the training pictures", done, total, "image"))
        fill(file, chunk, artist.latents, artist.at_once)
        done += len(chunk)
    if missing:
        tell(Progress("drawing the training pictures", total, total, "image"))


def own_first(items: Sequence[T]) -> list[T]:
    """The items, of which this process's share comes first if several run together."""
    process = this_process()
    own = [item for place, item in enumerate(items) if process.has(place)]
    return [*own, *(item for place, item in enumerate(items) if not process.has(place))]


def forecast(artist: Artist, missing: Sequence[tuple[Path, Sequence[Wish]]]) -> None:
    """Tell how many pictures are drawn, how, and how long it takes, by a step of one batch."""
    plan, pictures = artist.plan, sum(len(chunk) for _, chunk in missing)
    calls = plan.steps * sum(-(-len(chunk) // artist.at_once) for _, chunk in missing)
    if calls < FORECAST:
        return
    with doing("timing a step"):
        seconds = artist.seconds_a_call(missing[0][1][: artist.at_once]) * calls
    note(
        f"the model draws {pictures:,} pictures to train on, in {plan.steps} steps at guidance {plan.guidance_scale:g}:"
        f" about {in_minutes(seconds)} on this machine; they are kept for other runs, and {option('images')} asks for"
        " fewer"
    )
