"""One frozen, typed config per command. The command line and the docs are generated from these classes.

Each field's docstring is its help; ranges are checked here, once, for every way in.
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from cyclopts import Parameter
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fewstep.errors import UsageError

Precision = Literal["fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Solver = Literal[
    "auto",
    "lcm",
    "ddim",
    "euler",
    "dpm-solver-1",
    "tcd",
    "euler-a",
    "heun",
    "dpm-solver",
    "dpm-solver-3",
    "dpm-solver++",
    "dpm-solver++2s",
    "dpm-solver++3m",
]


class Config(BaseModel):
    """What every command's config shares: it does not change, and unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    argument: ClassVar[tuple[str, str] | None] = None  # the field typed without an option, and what help calls it


C = TypeVar("C", bound=Config)


def build(kind: type[C], **values: Any) -> C:
    """The config with these values; a bad one is a UsageError naming the option as typed."""
    try:
        return kind(**values)
    except ValidationError as error:
        raise usage_error(error) from None


def usage_error(error: ValidationError) -> UsageError:
    """pydantic's first complaint as one line and a hint."""
    first = error.errors()[0]
    name = option_name(str(first["loc"][0])) if first["loc"] else "value"
    given = first.get("input")
    if first["type"] == "extra_forbidden":
        return UsageError(f"there is no option {name}", "see --help for the options of this command")
    if first["type"] == "missing":
        return UsageError(f"{name} is required", "see --help for what it takes")
    return UsageError(
        f"{name} {given}: {first['msg'][0].lower()}{first['msg'][1:]}", "see --help for the range of values"
    )


def option_name(field: str) -> str:
    """The command-line spelling of a field: `train_steps` is typed --steps."""
    return "--" + SPELLINGS.get(field, field).replace("_", "-")


SPELLINGS = {"train_steps": "steps", "prompt_file": "prompts", "as_json": "json"}


class SampleConfig(Config):
    """Draw images from prompts, in 1 to 8 steps with an acceleration LoRA."""

    argument = ("prompts", "PROMPT")

    prompts: Annotated[tuple[str, ...], Parameter(parse=False)] = ()
    """What to draw; several prompts give several images."""
    model: str = "emoji"
    """emoji, the small model that ships; a Stable Diffusion folder in diffusers' layout; or one of the hub: sd15, sd21,
    ssd-1b, sdxl or owner/name[@revision]."""
    lora: Annotated[tuple[str, ...], Parameter(show_default=False)] = ()
    """FILE or FILE:WEIGHT, several times to add several LoRAs; lcm (the default for emoji), high-contrast and
    noto-mono ship; FILE may be of the hub, as owner/name or lcm-lora-sdv1-5."""
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Network calls of one branch; by default what the LoRA was trained for, else 20."""
    solver: Solver = "auto"
    """auto follows the LoRA's recipe; euler and dpm-solver-1 are other names of ddim, which makes the same step."""
    eta: Annotated[float, Field(ge=0, le=1)] | None = None
    """Of ddim: the part of DDPM's noise that is fresh at each step; 0 (its own) has none, 1 is DDPM and euler-a."""
    gamma: Annotated[float, Field(ge=0, le=1)] | None = None
    """Of tcd: how far past the next timestep to jump before noise is added; 0 is ddim, 0.3 its own."""
    grid: Literal["auto", "lcm", "trailing", "leading", "linspace"] = "auto"
    """Spacing of the timesteps; auto: the LoRA's training grid (lcm), else trailing."""
    guidance_scale: Annotated[float, Field(ge=0, le=50)] | None = None
    """1 = off; by default what the LoRA was trained for, else 7.5."""
    negative_prompt: Annotated[str, Parameter(show_default=False)] = ""
    """What to keep away from; it works only with a guidance scale above 1."""
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
    strength: Annotated[float, Field(gt=0, le=1)] = 0.6
    """How far from --image to go: near 0 keeps it, 1 forgets it. The steps stay as many as asked."""
    dtype: Precision = "fp32"
    """Precision of the networks."""
    device: Device = "auto"
    """Where to compute; auto takes cuda, then mps, then cpu."""
    out: Path = Path("images")
    """The folder for the PNGs; each carries its full recipe in its metadata."""
    as_json: bool = False
    """Print one JSON document about what was drawn instead of file names."""

    @field_validator("prompts")
    @classmethod
    def _some_prompt(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        if not prompts:
            raise UsageError("no prompt was given", 'write what to draw: fewstep sample "a red fox"')
        return prompts


class Source(Config):
    """The model and the images a run starts from (listed first in help)."""

    model: str
    """emoji, the small model that ships; a Stable Diffusion folder in diffusers' layout; or one of the hub: sd15, sd21,
    ssd-1b, sdxl or owner/name[@revision]."""
    data: Path
    """Images with captions: a folder of name.png + name.txt, or a .jsonl or .csv table with file_name and text."""
    size: Annotated[int, Field(ge=8, le=4096)] | None = None
    """Pixels of the square training images; by default the model's own size."""


class TrainingConfig(Config):
    """What every training run shares."""

    may_change: ClassVar[frozenset[str]] = frozenset(
        {
            "out",
            "train_steps",
            "resume",
            "checkpoint_every",
            "log_every",
            "tracker",
            "device",
            "learning_rate",
            "precision",
        }
    )

    out: Path
    """The run's folder: config.json, metrics.jsonl, checkpoints/, and the result at its top."""
    train_steps: Annotated[int, Field(ge=1)] = 1000
    """Optimiser steps."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Samples per process and forward pass."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Forward passes per optimiser step."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    """The peak rate of AdamW."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up."""
    decay: Literal["constant", "cosine"] = "constant"
    """How the rate goes on after the warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """AdamW's second-moment decay."""
    gradient_clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest gradient norm; 0 = off."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of the average that is exported; 0 = the last weights themselves."""
    precision: Precision = "fp32"
    """Of the networks' arithmetic; trained weights are always kept in fp32."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Order, noise, timesteps and guidance of every sample derive from it."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 500
    """Steps between checkpoints; the two newest are kept."""
    log_every: Annotated[int, Field(ge=1)] = 10
    """Steps between lines of metrics.jsonl."""
    resume: bool = False
    """Go on from the newest checkpoint in --out."""
    tracker: Literal["tensorboard", "wandb"] | None = None
    """Also report metrics to this tracker (its package must be installed)."""
    device: Device = "auto"
    """Where to compute; auto takes cuda, then mps, then cpu."""


class AdapterConfig(TrainingConfig, Source):
    """What distilling and fine-tuning a model on images share."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 64
    """Rank of the LoRA."""
    full: bool = False
    """Train all weights of the network instead of a LoRA."""
    init_lora: Path | None = None
    """Start from this LoRA's weights; its rank must be --rank."""
    drop_captions: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of captions replaced by the empty one."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


class DistillConfig(AdapterConfig):
    """Turn a model into a few-step one: latent consistency distillation (LCM-LoRA, arXiv 2311.05556)."""

    method: Literal["lcd"] = "lcd"
    """lcd: latent consistency distillation."""
    psi: str = "ddim"
    """The ODE solver that steps the teacher: ddim, dpm-solver, dpm-solver-3, dpm-solver++ (its 2S) or heun."""
    k: Annotated[int, Field(ge=1, le=500)] = 20
    """Skipping step: timesteps between s and t."""
    guidance_scale: Annotated[float, Field(ge=1, le=50)] = 8.5
    """The teacher's, 1 = off; 8.5 is the report's w = 7.5, since guidance_scale = 1 + w."""
    guidance_scale_max: Annotated[float, Field(ge=1, le=50)] | None = None
    """Draw each sample's guidance uniformly between --guidance-scale and this; by default it is fixed."""
    target: Literal["student", "ema"] = "ema"
    """Whose consistency function is aimed at: the student's own (gradient stopped) or its average's."""
    target_decay: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of the target's average."""
    loss: Literal["huber", "l2"] = "huber"
    """Distance of the two: pseudo-Huber, or the squared error."""
    huber_c: Annotated[float, Field(gt=0)] = 0.001
    """Pseudo-Huber's width, elementwise."""


class FinetuneConfig(AdapterConfig):
    """Teach a model a style or subject from images: a style LoRA, or with --full a fine-tuned model."""

    drop_captions: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of captions replaced by the empty one, so that guidance keeps working."""


class CompareConfig(Config):
    """Compare ways to sample in one table with its protocol: time, FID, KID, LPIPS, agreement, diversity."""

    model: str = "emoji"
    """emoji, the small model that ships; a Stable Diffusion folder in diffusers' layout; or one of the hub: sd15, sd21,
    ssd-1b, sdxl or owner/name[@revision]."""
    rows: Annotated[tuple[str, ...], Field(min_length=1), Parameter(consume_multiple=True)] = (
        "ddim:32",
        "dpm-solver:16",
        "dpm-solver++:8",
        "lcm:4",
    )
    """Each SOLVER[,eta=E][,gamma=G]:STEPS[@GUIDANCE][+LORA:WEIGHT]..., such as ddim:32@7.5, tcd,gamma=0.2:4 or
    lcm:4+lcm:1+high-contrast:0.8."""
    prompt_file: Path | None = None
    """One a line, or .jsonl with text, style and concept; by default the captions of --reference, or what ships."""
    images: Annotated[int, Field(ge=1, le=1_000_000)] = 64
    """Per row and seed set; FID needs 2049."""
    seed_sets: Annotated[int, Field(ge=1, le=100)] = 1
    """Times all images are drawn, from other noise each time; 3 show how far FID spreads."""
    reference: Path | None = None
    """Real images with captions for FID and KID, a folder or table as distill takes; without them both are left out."""
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 8
    """Images drawn at once; times are those of full batches."""
    dtype: Precision = "fp32"
    """Precision of the networks that draw."""
    device: Device = "auto"
    """Where to compute; auto takes cuda, then mps, then cpu."""
    out: Path = Path("compare")
    """The folder for table.md, table.json, report.html and the pictures; an earlier comparison is replaced."""
    as_json: bool = False
    """Print the table and its protocol as one JSON document."""


class AdapterOutput(Config):
    """What the commands that write a LoRA share."""

    out: Path
    """The file to write; with --dialect peft a folder."""
    rank: Annotated[int, Field(ge=1)] | None = None
    """Cut every module to this rank by truncated SVD, and say what is lost; by default nothing is."""
    energy: Annotated[float, Field(gt=0, le=1)] | None = None
    """Or to the lowest rank that keeps this share of the squared singular values."""
    dialect: Literal["kohya", "diffusers", "peft"] = "kohya"
    """Layout: kohya is what ComfyUI, diffusers and kohya's scripts read; peft is a folder."""
    dtype: Precision = "fp16"
    """Precision of the file; all arithmetic is in fp32."""
    as_json: bool = False
    """Print one JSON document about what was done."""


Loras = Annotated[tuple[str, ...], Parameter(parse=False)]


class MergeConfig(AdapterOutput):
    """Add LoRAs up, exactly: sum of WEIGHT x LoRA over any ranks, layouts and signs, to one file or into a model."""

    argument = ("files", "LORA")

    files: Loras = ()
    """FILE, FILE:WEIGHT or FILE:WEIGHT,BLOCK=WEIGHT,... with blocks te, te1, te2, down, mid, up, down0, up1, ..."""
    model: str | None = None
    """The model they are for; by default the family that has all their modules."""
    into: str | None = None
    """Fold the sum into this model, a diffusers folder or a .safetensors checkpoint, and write that to --out."""
    allow_partial: bool = False
    """Leave out modules that have no place in the model, instead of stopping."""

    @field_validator("files")
    @classmethod
    def _some(cls, files: tuple[str, ...]) -> tuple[str, ...]:
        if not files:
            raise UsageError("no LoRA was given", "fewstep merge style.safetensors:0.8 lcm --out both.safetensors")
        return files


class ResizeConfig(AdapterOutput):
    """Write a LoRA again at a lower rank: the best there is of that rank, and what it loses."""

    argument = ("files", "LORA")

    files: Loras = ()
    """The LoRA, one."""
    model: str | None = None
    """The model it is for; by default the family that has all its modules."""
    allow_partial: bool = False
    """Leave out modules that have no place in the model, instead of stopping."""

    @field_validator("files")
    @classmethod
    def _one(cls, files: tuple[str, ...]) -> tuple[str, ...]:
        if len(files) != 1:
            raise UsageError(
                f"{len(files)} LoRAs were given, not one", "fewstep resize FILE --rank 8 --out small.safetensors"
            )
        return files


class DifferenceConfig(AdapterOutput):
    """Get a LoRA out of two models of one family: what turns BASE into TUNED, cut to a rank."""

    argument = ("files", "TUNED BASE")

    files: Loras = ()
    """Two models, diffusers folders or .safetensors checkpoints: the fine-tuned one, then its base."""
    rank: Annotated[int, Field(ge=1)] | None = 64
    """Rank of the LoRA at most."""

    @field_validator("files")
    @classmethod
    def _two(cls, files: tuple[str, ...]) -> tuple[str, ...]:
        if len(files) != 2:
            raise UsageError(
                f"{len(files)} models were given, not two", "fewstep difference TUNED BASE --out lora.safetensors"
            )
        return files


class InspectConfig(Config):
    """Tell what a LoRA file is: layout, family, coverage, ranks, strength, and how it wants to be sampled."""

    argument = ("files", "LORA")

    files: Loras = ()
    """The files."""
    model: str | None = None
    """Check it against this model; by default against every family."""
    as_json: bool = False
    """Print one JSON document."""

    @field_validator("files")
    @classmethod
    def _some(cls, files: tuple[str, ...]) -> tuple[str, ...]:
        if not files:
            raise UsageError("no LoRA was given", "fewstep inspect FILE")
        return files


class DemoConfig(Config):
    """Show it: four-step pictures of the embedded model beside three solvers, styles, and a short distillation."""

    out: Path = Path("demo")
    """The folder for report.html and the pictures."""
    distill_steps: Annotated[int, Field(ge=1)] = 100
    """Optimiser steps of the distillation, 16 samples each."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of the first picture of every row."""
    dtype: Precision = "fp32"
    """Precision of the networks when they draw."""
    device: Device = "auto"
    """Where to compute; auto takes cuda, then mps, then cpu."""


class DoctorConfig(Config):
    """Check whether this machine is ready: packages, devices, memory, cache folder."""

    as_json: bool = False
    """Print one JSON document."""
