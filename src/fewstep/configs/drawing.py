"""The configs of the commands that draw: sample, compare, tune, demo."""

from pathlib import Path
from typing import Annotated, Self

from cyclopts import Parameter
from pydantic import Field, field_validator, model_validator

from fewstep.configs.base import ANY, Config, Device, Grid, ModelName, Precision, Solver
from fewstep.errors import UsageError


class SampleConfig(Config):
    """Draw images from prompts, in 1 to 8 steps with an acceleration LoRA."""

    argument = ("prompts", "PROMPT")
    needs = {  # noqa: RUF012
        "strength": ("image", ANY),
        "mask": ("image", ANY),
        "outpaint": ("image", ANY),
        "sketch": ("controlnet", ANY),
        "control_scale": ("controlnet", ANY),
        "nag_scale": ("negative_prompt", ANY),
    }

    prompts: Annotated[tuple[str, ...], Parameter(parse=False)] = ()
    """What to draw; several prompts give several images."""
    model: ModelName = "emoji"
    lora: Annotated[tuple[str, ...], Parameter(show_default=False)] = ()
    """FILE or FILE:WEIGHT, several times to add several LoRAs; lcm (the default for emoji), high-contrast and
    noto-mono ship; FILE may be the folder with it, or of the hub, as owner/name or lcm-lora-sdv1-5."""
    live_lora: bool = False
    """Add the LoRAs beside the layers at every call instead of into the weights: slower, but nothing of a weak LoRA is
    rounded away in bf16 or fp16."""
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Network calls of one branch; by default what the LoRA was trained for, else 20."""
    solver: Solver = "auto"
    """auto follows the LoRA's recipe; euler and dpm-solver-1 are other names of ddim, which makes the same step."""
    eta: Annotated[float, Field(ge=0, le=1)] | None = None
    """Of ddim: the part of DDPM's noise that is fresh at each step; 0 (its own) has none, 1 is DDPM and euler-a."""
    gamma: Annotated[float, Field(ge=0, le=1)] | None = None
    """Of tcd: how far past the next timestep to jump before noise is added; 0 is ddim, 0.3 its own."""
    grid: Grid = "auto"
    """Spacing of the timesteps; auto: what the LoRA asks for, lcm or quadratic (denser at the end) of its training
    grid, else trailing."""
    k: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Only for the grids lcm and quadratic: the training grid has every k-th timestep. By default the LoRA's own k,
    else 20."""
    guidance_scale: Annotated[float, Field(ge=0, le=50)] | None = None
    """1 = off; by default what the LoRA was trained for, else 7.5."""
    negative_prompt: Annotated[str, Parameter(show_default=False)] = ""
    """What to keep away from; it works with a guidance scale above 1, or by --nag-scale."""
    nag_scale: Annotated[float, Field(ge=1, le=50)] = 1.0
    """Lead attention away from --negative-prompt, which works at guidance 1 too; 1 = off, 5 is usual."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of the first image; the next ones count up from it."""
    count: Annotated[int, Field(ge=1, le=10000)] = 1
    """Images per prompt."""
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 8
    """Images drawn at once; lower it when memory runs out."""
    width: Annotated[int, Field(ge=8, le=8192)] | None = None
    """Pixels, a multiple of the autoencoder's factor (8); by default the model's own size."""
    height: Annotated[int, Field(ge=8, le=8192)] | None = None
    """Pixels, likewise."""
    image: Path | None = None
    """A picture to start from (image-to-image)."""
    strength: Annotated[float, Field(gt=0, le=1)] | None = None
    """How far from --image to go: near 0 keeps it, 1 forgets it; by default 0.6, with --mask or --outpaint 1. The
    steps stay as many as asked."""
    mask: Path | None = None
    """What of --image to draw anew (inpainting): a picture, white there and black elsewhere; grey mixes."""
    outpaint: str | None = None
    """Pixels to add to --image and draw (outpainting): one number for all sides, or LEFT,TOP,RIGHT,BOTTOM."""
    controlnet: str | None = None
    """The folder or hub id of a ControlNet, which draws after --control-image."""
    control_image: Path | None = None
    """What the ControlNet follows, as it was trained on: edges, depth, a pose, a scribble in white on black."""
    sketch: bool = False
    """--control-image is dark lines on light paper: turn it over to white on black."""
    control_scale: Annotated[float, Field(ge=0, le=10)] = 1.0
    """How strictly the ControlNet is followed."""
    no_safety_checker: bool = False
    """Do without the safety checker that the model's folder brings."""
    dtype: Precision = "fp32"
    """Precision of the networks."""
    device: Device = "auto"
    """Where to compute; auto takes cuda, then mps, then cpu."""
    out: Path = Path("images")
    """The folder for the PNGs, named for prompt and seed; each carries its full recipe. None is written over another:
    a name that is taken is numbered."""
    as_json: bool = False
    """Print one JSON document about what was drawn instead of file names."""

    @field_validator("prompts")
    @classmethod
    def _some_prompt(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        if not prompts:
            raise UsageError("no prompt was given", 'write what to draw: fewstep sample "a red fox"')
        return prompts

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.mask and self.outpaint:
            raise UsageError("--mask and --outpaint exclude each other", "outpaint first, then inpaint the result")
        if (self.controlnet is None) != (self.control_image is None):
            raise UsageError("--controlnet and --control-image go together", "give both, or neither")
        return self


class CompareConfig(Config):
    """Compare ways to sample in one table with its protocol: time, FID, KID, LPIPS, agreement, diversity."""

    needs = {"clip_model": ("clip_score", True)}  # noqa: RUF012

    model: ModelName = "emoji"
    rows: Annotated[tuple[str, ...], Field(min_length=1), Parameter(consume_multiple=True)] = (
        "ddim:32",
        "dpm-solver:16",
        "dpm-solver++:8",
        "lcm:4",
    )
    """Each SOLVER[,OPTION=VALUE]...:STEPS[@GUIDANCE][+LORA:WEIGHT]..., such as ddim:32@7.5, tcd,gamma=0.2:4 or
    lcm:4+lcm:1+high-contrast:0.8; options are eta, gamma, grid and k; @best is the guidance of --guidance-grid with
    the smallest KID to --reference."""
    prompt_file: Path | None = None
    """One a line, or .jsonl with text, style and concept; by default the captions of --reference, or what ships."""
    images: Annotated[int, Field(ge=1, le=1_000_000)] = 64
    """Per row and seed set; FID needs 2049."""
    seed_sets: Annotated[int, Field(ge=1, le=100)] = 1
    """Times all images are drawn, from other noise each time; 3 show how far FID spreads."""
    reference: Path | None = None
    """Real images with captions for FID and KID, a folder or table as distill takes; without them both are left out."""
    clip_score: bool = False
    """Measure CLIP score too: 100 cos(image, text), by CLIP's weights, which come from the hub or a folder."""
    clip_model: str = "openai/clip-vit-base-patch32"
    """CLIP for --clip-score: a folder, or owner/name[@revision] of the hub, with .safetensors weights."""
    guidance_grid: str = "1,1.5,2,3,4,6,8"
    """Guidance scales at which rows with @best are tried."""
    search_images: Annotated[int, Field(ge=4, le=1_000_000)] = 512
    """Images drawn at each of them: the first of the first seed set, or all of it if it has fewer."""
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 8
    """Images drawn at once; times are those of full batches."""
    timing_rounds: Annotated[int, Field(ge=0, le=1000)] = 0
    """Time every row anew, on so many batches drawn in turn with the other rows'; 0 takes the times that its images
    took when they were drawn, in an earlier run perhaps."""
    dtype: Precision = "fp32"
    """Precision of the networks that draw."""
    device: Device = "auto"
    """Where to compute; auto takes cuda, then mps, then cpu."""
    out: Path = Path("compare")
    """The folder for table.md, table.json, report.html and the pictures; an earlier comparison is replaced."""
    as_json: bool = False
    """Print the table and its protocol as one JSON document."""


class TuneConfig(Config):
    """Find how much of a style LoRA and of an acceleration LoRA to add, by what they draw together."""

    style: str
    """The style LoRA: a FILE, or high-contrast or noto-mono, which ship."""
    acceleration: str = "lcm"
    """The acceleration LoRA: a FILE, or lcm, which ships."""
    model: ModelName = "emoji"
    grid: str = "0.6,0.8,1.0"
    """Weights tried first, of both LoRAs, each with each; or two lists, style's:acceleration's, as in 0.5,0.8:0.9,1."""
    rounds: Annotated[int, Field(ge=0, le=8)] = 1
    """Then, so many times, the four neighbours of the best pair so far, at half the last distance."""
    blocks: bool = False
    """At last move the weights of the blocks down, mid and up of both LoRAs, one after another."""
    images: Annotated[int, Field(ge=8, le=1_000_000)] = 64
    """Per pair of weights, of the same prompts and noise for every pair."""
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Network calls of one branch; by default what the acceleration LoRA was trained for."""
    reference: Path | None = None
    """Real images in the style, with captions, a folder or table as distill takes; a style that ships needs none."""
    prompt_file: Path | None = None
    """One a line, or .jsonl with text, style and concept; by default the captions of --reference, or what ships."""
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 8
    """Images drawn at once."""
    dtype: Precision = "fp32"
    """Precision of the networks that draw."""
    device: Device = "auto"
    """Where to compute; auto takes cuda, then mps, then cpu."""
    out: Path = Path("tune")
    """The folder for table.md, table.json and the sheets; an earlier tuning is replaced."""
    as_json: bool = False
    """Print the table, its protocol and the best pair as one JSON document."""


class DemoConfig(Config):
    """Show it: four-step pictures of the embedded model beside three solvers, styles, and a short distillation."""

    out: Path = Path("demo")
    """The folder for report.html and the pictures."""
    distill_steps: Annotated[int, Field(ge=1)] = 150
    """Optimiser steps of the distillation, 16 samples each."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of the first picture of every row."""
    dtype: Precision = "fp32"
    """Precision of the networks when they draw."""
    device: Device = "auto"
    """Where to compute; auto takes cuda, then mps, then cpu."""
