"""Prompts to images: load, plan, draw, decode, save."""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from fewstep import __version__
from fewstep.configs import SampleConfig
from fewstep.diffusion.consistency import ConsistencyDenoiser
from fewstep.diffusion.guidance import Conditioning, Denoiser, Evaluations, GuidedDenoiser
from fewstep.diffusion.sampler import ImageNoise, sample, sampling_levels
from fewstep.errors import FewstepError, UsageError
from fewstep.images import read_image, save_png
from fewstep.io import sha256_file
from fewstep.lora.files import Reference, load_adapter, parse_reference
from fewstep.lora.layers import fold, module_shapes
from fewstep.lora.low_rank import check_fits
from fewstep.lora.recipe import Recipe
from fewstep.models.load import DTYPES, Model, load_model, pick_device
from fewstep.models.network import UNetNetwork
from fewstep.planning import Plan, plan_sampling


class Picture(NamedTuple):
    """One drawn image and what it was drawn from."""

    pixels: Tensor  # (3, H, W) in [-1, 1], on the CPU
    prompt: str
    seed: int
    nfe: float  # UNet rows evaluated for it


@dataclass(frozen=True)
class Pipeline:
    """A model with LoRAs folded in, and the recipes found on the way."""

    model: Model
    loras: tuple[Reference, ...]
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
        )

    def pictures(self, config: SampleConfig, plan: Plan) -> Iterator[Picture]:
        """The images of `config`, batch by batch; image number i has seed config.seed + i."""
        height, width = self._size(config)
        embeddings = {p: self.model.embed([p]) for p in dict.fromkeys([*config.prompts, config.negative_prompt])}
        wanted = [prompt for prompt in config.prompts for _ in range(config.count)]
        start = self._start_latents(config, height, width)
        bar = tqdm(total=len(wanted) * len(plan.timesteps), unit="step", file=sys.stderr, leave=False, disable=None)
        with bar:
            for first in range(0, len(wanted), config.batch_size):
                prompts = wanted[first : first + config.batch_size]
                seeds = [config.seed + first + i for i in range(len(prompts))]
                text = Conditioning(torch.cat([embeddings[p].text for p in prompts]))
                empty = embeddings[config.negative_prompt].expand(len(prompts))
                evaluations = Evaluations()
                denoise = GuidedDenoiser(
                    UNetNetwork(self.model.unet), self.model.prediction, text, empty, plan.guidance_scale, evaluations
                )
                latents = self._draw(denoise, plan, seeds, (height, width), start, bar)
                pixels = self._decoded(latents)
                for image, prompt, seed in zip(pixels, prompts, seeds, strict=True):
                    yield Picture(image, prompt, seed, evaluations.rows / len(prompts))

    @torch.no_grad()
    def _draw(
        self, denoise: Denoiser, plan: Plan, seeds: Sequence[int], size: tuple[int, int], start: Tensor | None, bar: Any
    ) -> Tensor:
        """Latents (B, C, H, W) of one batch."""
        model, device = self.model, self.model.device
        shape = (int(model.vae.config.latent_channels), size[0] // model.factor, size[1] // model.factor)
        noise = ImageNoise(seeds, shape, device)
        levels = sampling_levels(model.schedule, plan.timesteps, device=device)
        x = noise() if start is None else levels[0].alpha * start + levels[0].sigma * noise()
        if plan.consistency:
            denoise = ConsistencyDenoiser(denoise)
        return sample(denoise, plan.solver, model.schedule, levels, x, noise, lambda i, t, x: bar.update(len(x)))

    def _decoded(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) on the CPU; latents that are not finite are an error, never a black image."""
        if not latents.isfinite().all():
            raise FewstepError(
                "the network's output is not finite", "use --dtype fp32 or bf16, or a lower --guidance-scale"
            )
        return torch.cat([self.model.decode(part) for part in torch.split(latents, 1)]).cpu()

    def _size(self, config: SampleConfig) -> tuple[int, int]:
        """Height and width in pixels, checked against the autoencoder's factor."""
        model = self.model
        for option, value in (("--width", config.width), ("--height", config.height)):
            if value is not None and value % model.factor:
                nearest = max(round(value / model.factor), 1) * model.factor
                raise UsageError(f"{option} {value} is not a multiple of {model.factor}", f"use {nearest}")
        return config.height or model.size, config.width or model.size

    def _start_latents(self, config: SampleConfig, height: int, width: int) -> Tensor | None:
        """The latents image-to-image begins from, (1, C, H, W), or None."""
        if config.image is None:
            return None
        return self.model.encode(read_image(config.image, width, height)[None]).to(self.model.device)


def load_pipeline(name: str, loras: Sequence[str], dtype: str = "fp32", device: str = "auto") -> Pipeline:
    """The model with its LoRAs folded in, exactly summed in float32 and rounded once.

    loras: FILE or FILE:WEIGHT each. Raises FewstepError when a file is missing or does not fit.
    """
    references = tuple(parse_reference(text) for text in loras)
    for reference in references:
        if not reference.path.is_file():
            raise FewstepError(f"LoRA file not found: {reference.path}", "check the path after --lora")
    model = load_model(name, DTYPES[dtype], pick_device(device))
    shapes = module_shapes(model.unet)
    terms, recipes = [], [model.recipe] if model.recipe else []
    for path, weight in references:
        adapter, recipe = load_adapter(path, shapes)
        check_fits(adapter, shapes, str(path), name)
        terms.append((weight, adapter.modules))
        if recipe is not None and weight > 0:
            recipes.append(recipe)
    fold(model.unet, terms)
    return Pipeline(model, references, tuple(recipes))


def run(config: SampleConfig) -> None:
    """Draw the images of `config` and save them; file names, or one JSON document, go to stdout."""
    pipeline = load_pipeline(config.model, config.lora, config.dtype, config.device)
    plan = pipeline.plan(config)
    for note in plan.notes:
        print(f"note: {note}", file=sys.stderr)
    loras = [{"file": str(r.path), "weight": r.weight, "sha256": sha256_file(r.path)} for r in pipeline.loras]
    written = []
    for picture in pipeline.pictures(config, plan):
        recipe = recipe_of(picture, config, plan, loras)
        path = save_picture(picture, recipe, config.out)
        written.append({"file": str(path), **recipe})
        if not config.as_json:
            print(path)
    if config.as_json:
        print(json.dumps({"images": written}, indent=2))


def recipe_of(picture: Picture, config: SampleConfig, plan: Plan, loras: list[dict[str, Any]]) -> dict[str, Any]:
    """All it takes to draw the picture again."""
    return {
        "prompt": picture.prompt,
        "negative_prompt": config.negative_prompt,
        "seed": picture.seed,
        "model": config.model,
        "lora": loras,
        "solver": plan.solver_name,
        "steps": plan.steps,
        "timesteps": list(plan.timesteps),
        "nfe": picture.nfe,
        "guidance_scale": plan.guidance_scale,
        "image": str(config.image) if config.image else None,
        "strength": config.strength if config.image else None,
        "width": picture.pixels.shape[2],
        "height": picture.pixels.shape[1],
        "dtype": config.dtype,
        "fewstep": __version__,
    }


def save_picture(picture: Picture, recipe: dict[str, Any], folder: Path) -> Path:
    """Where the picture was saved: a PNG with its recipe in the text chunk `fewstep`."""
    words = re.sub(r"[^a-z0-9]+", "-", picture.prompt.lower()).strip("-")[:48] or "image"
    path = folder / f"{words}-{picture.seed}.png"
    save_png(path, picture.pixels, recipe)
    return path
