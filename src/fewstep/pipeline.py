"""Prompts to images: load, plan, draw, decode, save."""

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from fewstep import __version__
from fewstep.assets import ACCELERATION, MODEL
from fewstep.configs import SampleConfig
from fewstep.diffusion.consistency import ConsistencyDenoiser
from fewstep.diffusion.guidance import Conditioning, Denoiser, Evaluations, GuidedDenoiser
from fewstep.diffusion.sampler import ImageNoise, OnStep, sampling_levels
from fewstep.diffusion.sampler import sample as sample_latents
from fewstep.errors import FewstepError, UsageError
from fewstep.images import read_image, save_png, to_image
from fewstep.lora.files import hash_of, load_adapter
from fewstep.lora.layers import fold, shape_of
from fewstep.lora.low_rank import check_fits
from fewstep.lora.recipe import Recipe
from fewstep.lora.references import parse_reference
from fewstep.models.load import DTYPES, Model, load_model, pick_device
from fewstep.models.network import UNetNetwork
from fewstep.planning import DISTILLED_ONLY, Plan, plan_sampling

Lap = Callable[[str], object]  # told "text", "network" or "decoder" when that part of a batch is done


class Picture(NamedTuple):
    """One drawn image, and all it takes to draw it again."""

    pixels: Tensor  # (3, H, W) in [-1, 1], on the CPU
    recipe: dict[str, Any]

    @property
    def image(self) -> Image.Image:
        """As an RGB image."""
        return to_image(self.pixels)


def untimed(part: str) -> None:
    """Nothing, at the end of a part."""


@dataclass(frozen=True)
class Pipeline:
    """A model with LoRAs folded in, and what their files said."""

    model: Model
    loras: tuple[dict[str, Any], ...]  # file, weight and sha256 of each
    recipes: tuple[Recipe, ...]

    def plan(self, config: SampleConfig) -> Plan:
        """How `config` will be drawn."""
        return plan_sampling(
            self.model.schedule,
            self.recipes,
            config.solver,
            config.steps,
            config.guidance_scale,
            config.strength if config.image else 1.0,
            bool(config.negative_prompt),
            config.grid,
            config.eta,
            config.gamma,
        )

    def pictures(self, config: SampleConfig, plan: Plan, lap: Lap = untimed) -> Iterator[Picture]:
        """The images of `config`, batch by batch; image number i has seed config.seed + i.

        lap: a stopwatch's button. The text of all batches is embedded first, in one lap.
        """
        height, width = self._size(config)
        embeddings = {p: self.model.embed([p]) for p in dict.fromkeys([*config.prompts, config.negative_prompt])}
        lap("text")
        start = self._start_latents(config, height, width)
        wanted = [prompt for prompt in config.prompts for _ in range(config.count)]
        total = len(wanted) * len(plan.timesteps)
        with tqdm(total=total, unit="step", file=sys.stderr, leave=False, disable=None) as bar:
            for first in range(0, len(wanted), config.batch_size):
                prompts = wanted[first : first + config.batch_size]
                seeds = [config.seed + first + i for i in range(len(prompts))]
                text = Conditioning(torch.cat([embeddings[prompt].text for prompt in prompts]))
                denoise = GuidedDenoiser(
                    UNetNetwork(self.model.unet),
                    self.model.prediction,
                    text,
                    embeddings[config.negative_prompt].expand(len(prompts)),
                    plan.guidance_scale,
                    Evaluations(),
                )
                noise = ImageNoise(seeds, self._latent_shape(height, width), self.model.device)
                latents = self._draw(denoise, plan, noise, start, lambda i, t, x: bar.update(len(x)))
                lap("network")
                decoded = self._decoded(latents)
                lap("decoder")
                nfe = denoise.evaluations.rows / len(prompts)
                for pixels, prompt, seed in zip(decoded, prompts, seeds, strict=True):
                    yield Picture(pixels, self._recipe(config, plan, pixels, prompt, seed, nfe))

    @torch.no_grad()
    def _draw(self, denoise: Denoiser, plan: Plan, noise: ImageNoise, start: Tensor | None, on_step: OnStep) -> Tensor:
        """Latents (B, C, H, W) of one batch, from noise or from the start latents noised to the first level."""
        levels = sampling_levels(self.model.schedule, plan.timesteps, device=self.model.device)
        x = noise() if start is None else levels[0].alpha * start + levels[0].sigma * noise()
        if plan.consistency:
            denoise = ConsistencyDenoiser(denoise)
        return sample_latents(denoise, plan.solver, self.model.schedule, levels, x, noise, on_step)

    def _decoded(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) on the CPU; latents that are not finite are an error, never a black image."""
        if not latents.isfinite().all():
            hint = "use --dtype fp32 or bf16, or a lower --guidance-scale"
            raise FewstepError("the network's output is not finite", hint)
        return torch.cat([self.model.decode(part) for part in torch.split(latents, 1)]).cpu()

    def _size(self, config: SampleConfig) -> tuple[int, int]:
        """Height and width in pixels, checked against the autoencoder's factor."""
        factor = self.model.factor
        for option, value in (("--width", config.width), ("--height", config.height)):
            if value is not None and value % factor:
                raise UsageError(
                    f"{option} {value} is not a multiple of {factor}", f"use {max(round(value / factor), 1) * factor}"
                )
        return config.height or self.model.size, config.width or self.model.size

    def _latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        model = self.model
        return int(model.vae.config.latent_channels), height // model.factor, width // model.factor

    def _start_latents(self, config: SampleConfig, height: int, width: int) -> Tensor | None:
        """The latents image-to-image begins from, (1, C, H, W), or None."""
        if config.image is None:
            return None
        return self.model.encode(read_image(config.image, width, height)[None]).to(self.model.device)

    def _recipe(
        self, config: SampleConfig, plan: Plan, pixels: Tensor, prompt: str, seed: int, nfe: float
    ) -> dict[str, Any]:
        """All it takes to draw the picture again."""
        return {
            "prompt": prompt,
            "negative_prompt": config.negative_prompt,
            "seed": seed,
            "model": config.model,
            "lora": list(self.loras),
            "solver": plan.solver_name,
            "eta": plan.eta,
            "gamma": plan.gamma,
            "steps": plan.steps,
            "timesteps": list(plan.timesteps),
            "nfe": nfe,
            "guidance_scale": plan.guidance_scale,
            "image": str(config.image) if config.image else None,
            "strength": config.strength if config.image else None,
            "width": pixels.shape[2],
            "height": pixels.shape[1],
            "dtype": config.dtype,
            "fewstep": __version__,
        }


def loras_of(config: SampleConfig) -> tuple[str, ...]:
    """The LoRAs asked for; with none, the embedded model's own acceleration, if the solver is one for such."""
    own = config.model == MODEL and config.solver in {"auto", *DISTILLED_ONLY}
    return config.lora or ((ACCELERATION,) if own else ())


def load_pipeline(name: str, loras: Sequence[str], dtype: str = "fp32", device: str = "auto") -> Pipeline:
    """The model with its LoRAs folded in, exactly summed in float32 and rounded once.

    loras: FILE or FILE:WEIGHT each. Raises FewstepError when a file is missing or does not fit.
    """
    references = [parse_reference(text) for text in loras]
    paths = [reference.file for reference in references]
    model = load_model(name, DTYPES[dtype], pick_device(device))
    layers = model.layers()
    shapes = {name: shape for name, layer in layers.items() if (shape := shape_of(layer)) is not None}
    terms, recipes = [], [model.recipe] if model.recipe else []
    for path, reference in zip(paths, references, strict=True):
        adapter, recipe = load_adapter(path, shapes)
        check_fits(adapter, shapes, str(reference.path), name)
        terms.append((reference.weight_of, adapter.modules))
        if recipe is not None and reference.weight > 0:
            recipes.append(recipe)
    fold(layers, terms)
    files = tuple(
        {"file": str(r.path), "weight": r.weight, "blocks": dict(r.blocks), "sha256": hash_of(r.file)}
        for r in references
    )
    return Pipeline(model, files, tuple(recipes))


def sample(config: SampleConfig) -> Iterator[Picture]:
    """The pictures of `config`, one by one as they are drawn; advice about the plan goes to stderr."""
    pipeline = load_pipeline(config.model, loras_of(config), config.dtype, config.device)
    plan = pipeline.plan(config)
    for note in plan.notes:
        print(f"note: {note}", file=sys.stderr)
    yield from pipeline.pictures(config, plan)


def run(config: SampleConfig) -> None:
    """Draw the images of `config` and save them; file names, or one JSON document, go to stdout."""
    if config.out.exists() and not config.out.is_dir():
        raise UsageError(f"--out {config.out} is a file", "give --out a folder")
    written = []
    for picture in sample(config):
        path = save_picture(picture, config.out)
        written.append({"file": str(path), **picture.recipe})
        if not config.as_json:
            print(path, flush=True)
    if config.as_json:
        print(json.dumps({"images": written}, indent=2))


def save_picture(picture: Picture, folder: Path) -> Path:
    """Where the picture was saved: a PNG named for its prompt and seed, with its recipe inside."""
    words = re.sub(r"[^a-z0-9]+", "-", picture.recipe["prompt"].lower()).strip("-")[:48] or "image"
    path = folder / f"{words}-{picture.recipe['seed']}.png"
    save_png(path, picture.pixels, picture.recipe)
    return path
