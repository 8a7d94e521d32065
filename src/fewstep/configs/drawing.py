"""The configs of the commands that draw: sample, compare, tune, demo."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from fewstep.configs.base import Config, DrawingDevice, ModelName, SourceName, Typed
from fewstep.configs.draw import Draw, Drawing, no_prompt
from fewstep.configs.where import DType, EngineName, Where
from fewstep.errors import UsageError, option


class Output(Config):
    """Where pictures go."""

    out: Path = Path("images")
    """The folder for the pictures, which are named for prompt and seed. None is written over another: a name that is
    taken is numbered."""
    format: Literal["png", "jpeg", "webp"] = "png"
    """Kind of file. png keeps every pixel as it was drawn; jpeg and webp are smaller, of quality 95. Each carries its
    recipe, which inspect shows and sample draws again."""
    as_json: bool = False
    """Print one JSON document about what was drawn instead of file names."""


class SampleConfig(Output, Drawing[Path], Where):
    """Draw pictures from prompts, in 1 to 8 steps with an acceleration LoRA."""

    argument = ("prompts", "PROMPT")
    first: ClassVar[tuple[str, ...]] = (
        "model", "loras", "steps", "guidance_scale", "negative_prompt", "seed", "count", "width", "height",
        "prompt_file", "out", "format", "sheet", "redraw",
        "image", "strength", "mask", "outpaint", "controlnet", "control_image", "control_scale", "sketch",
        "solver", "grid", "k", "eta", "gamma", "nag_scale",
    )  # fmt: skip

    prompt_file: Path | None = None
    """A file with more prompts, one a line, or .jsonl with text."""
    sheet: bool = False
    """Also write a contact sheet: all pictures on one, over their prompts and seeds."""
    redraw: Path | None = None
    """A picture that sample wrote: draw it again, by the recipe in it. What is typed beside it is changed."""

    @model_validator(mode="after")
    def _some_prompt(self) -> Self:
        typed = "prompts" in self.model_fields_set  # the command line gives them last, to a config of the options
        own = "model" in self.model_fields_set  # it may draw without a prompt, which its files show
        if typed and not (self.prompts or self.prompt_file or self.redraw or own):
            raise no_prompt()
        return self

    @model_validator(mode="after")
    def _controlled(self) -> Self:
        if (self.controlnet is None) != (self.control_image is None):
            raise UsageError(
                f"{option('controlnet')} and {option('control_image')} go together", "give both, or neither"
            )
        return self

    def draw(self, read: Callable[[Path], bytes]) -> Draw:
        """What is drawn, with the pictures it starts from as `read` reads them."""
        values = {name: getattr(self, name) for name in Draw.model_fields}
        files = {name: read(value) for name, value in values.items() if isinstance(value, Path)}
        return Draw.model_construct(None, **{**values, **files})


class CompareConfig(Config):
    """Compare ways to sample in one table with its protocol: time, FID, KID, LPIPS, agreement, diversity."""

    needs = {"clip_model": ("clip_score", True), "acceleration": ("preset", "evidence")}  # noqa: RUF012
    excludes = {"rows": "preset", "seed_sets": "preset"}  # noqa: RUF012

    model: ModelName = "emoji"
    preset: Literal["evidence"] | None = None
    """evidence: the rows that show what a model's acceleration LoRA is worth, of names of things, and pictures of the
    teacher's own to compare them with; 256 --images unless others are asked for. It first says how long it takes."""
    acceleration: str | None = None
    """The acceleration LoRA of --preset: a FILE, or one that ships; by default the one that ships with the model."""
    rows: Annotated[tuple[str, ...], Field(min_length=1), Typed(several=True)] = (
        "ddim:32",
        "dpm-solver:16",
        "dpm-solver++:8",
        "lcm:4",
    )
    """Each SOLVER[,OPTION=VALUE]...:STEPS[@GUIDANCE][+LORA:WEIGHT]..., such as ddim:32@7.5, tcd,gamma=0.2:4 or
    lcm:4+lcm:1+high-contrast:0.8; options are eta, gamma, grid and k; @best is the guidance of --guidance-grid with
    the smallest KID to --reference."""
    prompt_file: Path | None = None
    """One a line, or .jsonl with text, style and concept; or a list that ships: names (of things), typed (as people
    type) or general; by default the captions of --reference, or of the drawings that ship."""
    images: Annotated[int, Field(ge=1, le=1_000_000)] = 64
    """Per row and seed set; FID needs 2049."""
    teacher_images: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Pictures that the model without LoRAs draws in 100 steps of DDIM from other noise, for KID-T, FID-T, MIND and
    sharpness; 0 leaves these out. A preset draws as many as --images."""
    lpips_images: Annotated[int, Field(ge=0, le=1_000_000)] = 256
    """Pictures that it draws likewise from the rows' own noise, for LPIPS to the teacher, at most --images; 0 leaves
    that out. All its pictures are drawn in --dtype, int8 too."""
    teacher_guidance: Annotated[float, Field(ge=0, le=50)] | None = None
    """Guidance of those pictures, and of a preset's rows without the LoRA; by default what the model recommends."""
    seed_sets: Annotated[int, Field(ge=1, le=100)] = 1
    """Times all images are drawn, from other noise each time; 3 show how far FID spreads."""
    reference: SourceName | None = None
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
    engine: EngineName = "auto"
    dtype: DType = "auto"
    device: DrawingDevice = "auto"
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
    reference: SourceName | None = None
    """Real images in the style, with captions, a folder or table as distill takes; a style that ships needs none."""
    prompt_file: Path | None = None
    """One a line, or .jsonl with text, style and concept; by default the captions of --reference, or what ships."""
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 8
    """Images drawn at once."""
    engine: EngineName = "auto"
    dtype: DType = "auto"
    device: DrawingDevice = "auto"
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
    engine: EngineName = "auto"
    dtype: DType = "auto"
    device: DrawingDevice = "auto"
