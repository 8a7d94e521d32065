"""Training data without images: pictures that the model draws after captions, kept as latents in the cache.

x_0 is the end of the bare model's own guided trajectory in a few steps, from noise of the run's seed. TLCM (arXiv
2406.05768) learns from such pictures too. They are never decoded.
"""

import random
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle, islice
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.assets import GENERAL, MODEL, NAMES
from fewstep.configs import DistillConfig
from fewstep.data.cache import Encoded
from fewstep.data.cache.encoded import SIZES, VALUES
from fewstep.data.cache.encoding import encode_captions, text_store
from fewstep.data.cache.index import Rows
from fewstep.data.cache.processes import this_process
from fewstep.data.cache.store import Store, Writer, as_array, encoded_folder, key_of
from fewstep.data.prompts import Prompt, list_that_ships, listed_prompts, shipped_prompts
from fewstep.diffusion.sampler import ImageNoise
from fewstep.engines import NetworkOptions
from fewstep.engines.torch import TorchEngine
from fewstep.errors import FewstepError, UsageError, number_of, option
from fewstep.events import counted, doing, in_minutes, note
from fewstep.models.load import DTYPES
from fewstep.models.model import TEXT_PARTS, Model, parts_sha256
from fewstep.models.quiet import quiet
from fewstep.models.text import sizes_of
from fewstep.session.canvas import Canvas
from fewstep.session.drawing import PictureBatch, draw_latents
from fewstep.session.plan import Plan, plan_sampling
from fewstep.training.adapt import training_size, usual_guidance

SOLVER = "dpm-solver++"
COUNT = 1000  # pictures, unless there are more captions
MOST_AT_ONCE = 32  # pictures that are drawn together
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
        """How many pictures are drawn together."""
        return min(MOST_AT_ONCE, max(1, LATENT_PIXELS // (self.size // self.model.factor) ** 2))

    @cached_property
    def store(self) -> Store:
        """Where the pictures are. Its name is a hash of all that they depend on but the wishes and the device."""
        model, plan = self.model, self.plan
        network = f"{parts_sha256(model.path, ('unet', 'scheduler', *TEXT_PARTS))} {model.prediction_type}"
        steps = f"{plan.solver_name} {plan.timesteps} {plan.guidance_scale}"
        return Store(
            encoded_folder() / f"drawn-{key_of(f'2 {network} {steps} {self.dtype} {self.full} {self.size}').hex()}"
        )

    def keys(self, wishes: Sequence[Wish]) -> list[bytes]:
        """The key of each picture of a batch. Its last bits depend on the whole batch, and so does its key."""
        batch = key_of(*(f"{wish.seed} {wish.caption}" for wish in wishes))
        return [key_of(batch, str(place)) for place in range(len(wishes))]

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
        return {VALUES: x_0.float().cpu(), SIZES: sizes_of(size, size).repeat(count, 1)}

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
    artist, texts = artist_of(config, model), text_store(encoded_folder(), model)
    wishes = wishes_of(captions, config.images, config.seed)
    batches = [wishes[start : start + artist.at_once] for start in range(0, len(wishes), artist.at_once)]
    draw_missing(artist, batches)
    encode_captions((wish.caption for wish in wishes), model, texts)
    pictures = Rows(artist.store, as_array([key for batch in batches for key in artist.keys(batch)]))
    embeddings = Rows(texts, as_array([key_of(wish.caption) for wish in wishes]))
    parts = (part for rows in (pictures, embeddings) for part in (rows.store.folder.name, rows.keys.tobytes()))
    encoded = Encoded(pictures.awaited(), embeddings.awaited(), identity=key_of(*parts).hex())
    for store in (artist.store, texts):
        store.touch()
    return encoded


def draw_missing(artist: Artist, batches: Sequence[Sequence[Wish]]) -> None:
    """Draw this process's share of the batches that are missing. A note tells the time."""
    process, (_, kept), writer = this_process(), artist.store.read(), Writer(artist.store)
    own = [batch for number, batch in enumerate(batches) if process.has(number)]
    missing = [batch for batch in own if artist.keys(batch)[0] not in kept]
    if not missing:
        return
    forecast(artist, missing)
    try:
        for batch in counted(missing, "drawing the training pictures", "batch", len(missing)):
            writer.add(artist.keys(batch), artist.latents(batch))
    finally:
        writer.flush()


def forecast(artist: Artist, missing: Sequence[Sequence[Wish]]) -> None:
    """Tell how many pictures are drawn, how, and how long it takes, by a step of one batch."""
    plan, pictures, calls = artist.plan, sum(map(len, missing)), artist.plan.steps * len(missing)
    if calls < FORECAST:
        return
    with doing("timing a step"):
        seconds = artist.seconds_a_call(missing[0]) * calls
    note(
        f"the model draws {number_of(pictures, 'picture')} to train on, in {number_of(plan.steps, 'step')} at guidance"
        f" {plan.guidance_scale:g}: about {in_minutes(seconds)} on this machine; they are kept for other runs, and"
        f" {option('images')} asks for fewer"
    )
