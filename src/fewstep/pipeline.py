"""Prompts to images: load, plan, draw, decode, save."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from fewstep import __version__
from fewstep.assets import ACCELERATION, MODEL
from fewstep.canvas import Canvas, Keeping, canvas_of, strength_of
from fewstep.configs import SampleConfig
from fewstep.diffusion.consistency import ConsistencyDenoiser
from fewstep.diffusion.guidance import Conditioning, Denoiser, Evaluations, GuidedDenoiser, concatenate
from fewstep.diffusion.sampler import ImageNoise, OnStep, ignore, sampling_levels
from fewstep.diffusion.sampler import sample as sample_latents
from fewstep.diffusion.solvers.base import Noise
from fewstep.errors import FewstepError, UsageError
from fewstep.events import note
from fewstep.images import save_png, to_image, words_of
from fewstep.io import is_file
from fewstep.lora.files import hash_of, load_adapter
from fewstep.lora.fitting import check_made_for
from fewstep.lora.layers import add_beside, fold, shape_of
from fewstep.lora.low_rank import Adapter, Weight, combine
from fewstep.lora.recipe import Recipe
from fewstep.lora.references import parse_reference
from fewstep.lora.rounding import loss_note, lost_share
from fewstep.models.load import DTYPES, load_controlnet, load_model, pick_device
from fewstep.models.model import Model
from fewstep.models.nag import use_guided_attention
from fewstep.models.network import UNetNetwork
from fewstep.planning import Plan, plan_sampling, solver_named

DECODED_AT_ONCE = 64 * 64  # latent pixels: one image of 512 x 512, or several smaller ones
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
    """A model with its LoRAs, folded in or beside its layers, and what their files said."""

    model: Model
    loras: tuple[dict[str, Any], ...]  # file, weight and sha256 of each
    recipes: tuple[Recipe, ...]
    controlnet: Any = None  # ControlNetModel
    notes: tuple[str, ...] = ()  # for the person who draws

    def plan(self, config: SampleConfig) -> Plan:
        """How `config` will be drawn."""
        plan = plan_sampling(
            self.model.schedule,
            self.recipes,
            config.solver,
            config.steps,
            config.guidance_scale,
            strength_of(config),
            bool(config.negative_prompt) and config.nag_scale == 1,
            config.grid,
            config.eta,
            config.gamma,
            config.k,
        )
        return replace(plan, notes=plan.notes + self.notes)

    def pictures(self, config: SampleConfig, plan: Plan, lap: Lap = untimed) -> Iterator[Picture]:
        """The images of `config`, batch by batch; image number i has seed config.seed + i.

        lap: a stopwatch's button. The text of all batches is embedded first, in one lap.
        """
        canvas = canvas_of(config, self.model)
        texts = dict.fromkeys([*config.prompts, config.negative_prompt])
        embeddings = {text: self._told(text, canvas) for text in texts}
        lap("text")
        if config.nag_scale > 1:
            use_guided_attention(self.model.unet, config.nag_scale)
            away = embeddings[config.negative_prompt].text
            embeddings = {text: told._replace(negative=away) for text, told in embeddings.items()}
        network = UNetNetwork(self.model.unet, self.controlnet, config.control_scale)
        wanted = [prompt for prompt in config.prompts for _ in range(config.count)]
        total = len(wanted) * len(plan.timesteps)
        with tqdm(total=total, unit="step", file=sys.stderr, leave=False, disable=None) as bar:
            for first in range(0, len(wanted), config.batch_size):
                prompts = wanted[first : first + config.batch_size]
                seeds = [config.seed + first + i for i in range(len(prompts))]
                denoise = GuidedDenoiser(
                    network,
                    self.model.prediction,
                    concatenate([embeddings[prompt] for prompt in prompts]),
                    embeddings[config.negative_prompt].expand(len(prompts)),
                    plan.guidance_scale,
                    Evaluations(),
                )
                noise = ImageNoise(seeds, self.model.latent_shape(canvas.height, canvas.width), self.model.device)
                latents = self._draw(denoise, plan, noise, canvas, lambda i, t, x: bar.update(len(x)))
                lap("network")
                decoded = self._decoded(latents)
                lap("decoder")
                nfe = denoise.evaluations.rows / len(prompts)
                for drawn, prompt, seed in zip(decoded, prompts, seeds, strict=True):
                    pixels = self._shown(canvas.kept(drawn), prompt, seed)
                    yield Picture(pixels, self._recipe(config, plan, pixels, prompt, seed, nfe))

    def paint(self, plan: Plan, told: Conditioning, noise: Noise) -> Tensor:
        """Pixels (B, 3, H, W) on the CPU of one batch, from embeddings and noise instead of prompts and seeds.

        told: of B pictures of the model's own size. noise: draws (B, C, H, W), first what the pictures begin from.
        """
        away = self.model.embed([""]).expand(len(told.text))
        network = UNetNetwork(self.model.unet)
        denoise = GuidedDenoiser(network, self.model.prediction, told, away, plan.guidance_scale)
        return self._decoded(self._draw(denoise, plan, noise, Canvas(self.model.size, self.model.size), ignore))

    def _told(self, text: str, canvas: Canvas) -> Conditioning:
        """What one prompt and the canvas tell the networks."""
        told = self.model.embed([text], canvas.height, canvas.width)
        return told._replace(beside=canvas.beside, control=canvas.control)

    @torch.no_grad()
    def _draw(self, denoise: Denoiser, plan: Plan, noise: Noise, canvas: Canvas, on_step: OnStep) -> Tensor:
        """Latents (B, C, H, W) of one batch, from noise or from the canvas noised to the first level."""
        levels = sampling_levels(self.model.schedule, plan.timesteps, device=self.model.device)
        x = noise() if canvas.start is None else levels[0].alpha * canvas.start + levels[0].sigma * noise()
        if plan.consistency:
            denoise = ConsistencyDenoiser(denoise)
        if canvas.latents is not None and canvas.drawn is not None and not self.model.inpaints:
            denoise = Keeping(denoise, canvas.latents, canvas.drawn)
        return sample_latents(denoise, plan.solver, self.model.schedule, levels, x, noise, on_step)

    def _decoded(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) on the CPU; latents that are not finite are an error, never a black image."""
        if not latents.isfinite().all():
            hint = "use --dtype fp32 or bf16, or a lower --guidance-scale"
            raise FewstepError("the network's output is not finite", hint)
        parts = torch.split(latents, max(1, DECODED_AT_ONCE // latents[0, 0].numel()))
        return torch.cat([self.model.decode(part) for part in parts]).cpu()

    def _shown(self, pixels: Tensor, prompt: str, seed: int) -> Tensor:
        """The pixels (3, H, W), or black when the model's safety checker hides them, which stderr says."""
        if self.model.safety_checker is None or not self.model.safety_checker.hides(pixels):
            return pixels
        note(f"the model's safety checker hid the picture of {prompt!r}, seed {seed}")
        return torch.full_like(pixels, -1)

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
            "live_lora": config.live_lora,
            "solver": plan.solver_name,
            "eta": plan.eta,
            "gamma": plan.gamma,
            "steps": plan.steps,
            "timesteps": list(plan.timesteps),
            "nfe": nfe,
            "guidance_scale": plan.guidance_scale,
            "nag_scale": config.nag_scale,
            "image": str(config.image) if config.image else None,
            "strength": strength_of(config) if config.image else None,
            "mask": str(config.mask) if config.mask else None,
            "outpaint": config.outpaint,
            "controlnet": config.controlnet,
            "control_image": str(config.control_image) if config.control_image else None,
            "control_scale": config.control_scale if config.controlnet else None,
            "width": pixels.shape[2],
            "height": pixels.shape[1],
            "dtype": config.dtype,
            "fewstep": __version__,
        }


def loras_of(config: SampleConfig) -> tuple[str, ...]:
    """The LoRAs asked for; with none, the embedded model's own acceleration, if the solver is one for such."""
    own = config.model == MODEL and (config.solver == "auto" or solver_named(config.solver).distilled_only)
    return config.lora or ((ACCELERATION,) if own else ())


def load_pipeline(
    name: str,
    loras: Sequence[str],
    dtype: str = "fp32",
    device: str = "auto",
    controlnet: str | None = None,
    safety: bool = True,
    live: bool = False,
) -> Pipeline:
    """The model with its LoRAs folded in, exactly summed in float32 and rounded once.

    loras: FILE or FILE:WEIGHT each. controlnet: a folder. safety: whether a safety checker that the model brings is
    used. live: the LoRAs are added beside the layers instead, so that the weights' type rounds nothing of them away.
    Raises FewstepError when a file is missing or does not fit.
    """
    references = [parse_reference(text) for text in loras]
    paths = [reference.file for reference in references]
    model = load_model(name, DTYPES[dtype], pick_device(device), safety)
    layers = model.layers()
    shapes = {name: shape for name, layer in layers.items() if (shape := shape_of(layer)) is not None}
    terms, recipes = [], [model.recipe] if model.recipe else []
    for path, reference in zip(paths, references, strict=True):
        adapter, recipe = load_adapter(path, shapes, lambda name: layers[name].weight)
        check_made_for(adapter, recipe, shapes, str(reference.path), name, model.prediction_type)
        terms.append((reference.weight_of, adapter))
        if recipe is not None and reference.weight > 0:
            recipes.append(recipe)
    notes = plugged(layers, terms, live)
    files = tuple(
        {"file": str(r.path), "weight": r.weight, "blocks": dict(r.blocks), "sha256": hash_of(r.file)}
        for r in references
    )
    control = None if controlnet is None else load_controlnet(controlnet, model)
    return Pipeline(model, files, tuple(recipes), control, notes)


def plugged(layers: Mapping[str, nn.Module], terms: Sequence[tuple[Weight, Adapter]], live: bool) -> tuple[str, ...]:
    """Put the LoRAs into the layers, or beside them; what to tell the person about it."""
    if live:
        add_beside(layers, combine(terms))
        return ()
    lost = lost_share(fold(layers, [(weight, adapter.modules) for weight, adapter in terms]))
    text = loss_note(lost, "sample --live-lora keeps it, and so does --dtype fp32")
    return (text,) if text else ()


def sample(config: SampleConfig) -> Iterator[Picture]:
    """The pictures of `config`, one by one as they are drawn; advice about the plan goes to stderr."""
    pipeline = load_pipeline(
        config.model,
        loras_of(config),
        config.dtype,
        config.device,
        config.controlnet,
        not config.no_safety_checker,
        config.live_lora,
    )
    plan = pipeline.plan(config)
    for text in plan.notes:
        note(text)
    yield from pipeline.pictures(config, plan)


def run(config: SampleConfig) -> None:
    """Draw the images of `config` and save them; file names, or one JSON document, go to stdout."""
    if is_file(config.out):
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
    """Where the picture was saved: a PNG named for its prompt and seed, with its recipe inside; never over another."""
    path = folder / f"{words_of(picture.recipe['prompt'])}-{picture.recipe['seed']}.png"
    return save_png(path, picture.pixels, picture.recipe)
