"""The configs of the commands that train: distill, finetune."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from fewstep.configs.base import ANY, Config, Device, MethodName, ModelName, Modules, Precision, SourceName, Typed
from fewstep.configs.data import Selection
from fewstep.configs.framing import FramingOptions
from fewstep.errors import UsageError, option

Tracker = Literal[
    "tensorboard", "wandb", "mlflow", "comet_ml", "swanlab", "trackio", "aim", "clearml", "dvclive"
]  # those of accelerate


class ModelAndData(Selection):
    """The model and the images a run starts from (listed first in help)."""

    first: ClassVar[tuple[str, ...]] = ("model", "data", "size")

    model: ModelName
    data: SourceName | None = None
    """Images with captions: a folder of name.png + name.txt; a .jsonl, .csv or .parquet table; a .zip, a .tar or shards
    such as 'shards/{000..012}.tar', also on a server; a data set of the hub, owner/name; or a cache that fewstep data
    encode made (docs/data.md)."""
    size: Annotated[int, Field(ge=8, le=4096)] | None = None
    """Pixels of a side of the square training images; by default the model's own size."""


class TrainingConfig(Config):
    """What every training run shares."""

    needs = {  # noqa: RUF012
        "power": ("decay", "polynomial"),
        "cycles": ("decay", "cosine"),
        "project": ("tracker", ANY),
    }
    excludes = {"epochs": "train_steps"}  # noqa: RUF012
    may_change: ClassVar[frozenset[str]] = frozenset(
        {
            "out",
            "train_steps",
            "epochs",
            "batch_size",
            "accumulate",
            "resume",
            "resume_from",
            "checkpoint_every",
            "keep_checkpoints",
            "log_every",
            "tracker",
            "project",
            "device",
            "learning_rate",
            "precision",
        }
    )

    places: ClassVar[frozenset[str]] = frozenset(
        {"model", "data", "init_lora", "prompt_file", "preview_prompts"}
    )  # fields that may name a path

    out: Path
    """The run's folder: config.json, metrics.jsonl, checkpoints/, and the result at its top."""
    train_steps: Annotated[int, Field(ge=1)] = 1000
    """Optimiser steps."""
    epochs: Annotated[int, Field(ge=1)] | None = None
    """Passes over all samples, instead of --steps."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Samples per process and forward pass."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Forward passes per optimiser step."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    """The peak rate of AdamW."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up."""
    decay: Literal["constant", "linear", "polynomial", "cosine"] = "constant"
    """How the rate goes on after the warm-up: it stays, or falls to 0 in a line, a power of it, or a half cosine."""
    power: Annotated[float, Field(gt=0)] = 1.0
    """Only for --decay polynomial: the power of the share of steps that is left."""
    cycles: Annotated[int, Field(ge=1)] = 1
    """Only for --decay cosine: how many times the rate falls; in between it starts again at its peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's first-moment decay."""
    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """AdamW's second-moment decay."""
    epsilon: Annotated[float, Field(gt=0, lt=1)] = 1e-8
    """What AdamW adds to the root of the second moment."""
    gradient_clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest gradient norm; 0 = off."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of the average that is exported; 0 = the last weights themselves. Of a LoRA it is the average of A and that
    of B, not the average of their product B A."""
    precision: Precision = "fp32"
    """Of the networks' arithmetic; trained weights are always kept in fp32."""
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    """adamw, or adamw-8bit, which keeps AdamW's two averages in 8 bits, a quarter of their memory (needs the package
    bitsandbytes)."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Order, noise, timesteps and guidance of every sample derive from it."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 500
    """Steps between checkpoints."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """How many checkpoints are kept, the newest ones."""
    log_every: Annotated[int, Field(ge=1)] = 10
    """Steps between lines of metrics.jsonl."""
    resume: bool = False
    """Go on from the newest checkpoint in --out."""
    resume_from: Path | None = None
    """Go on from a checkpoint of another run, or from the newest in its folder, with that run's options. With --resume,
    only if --out has no checkpoint."""
    tracker: Tracker | None = None
    """Also report metrics and previews to this tracker (its package must be installed)."""
    project: str = "fewstep"
    """The project's name in the tracker."""
    device: Device = "auto"
    """Where to compute; auto takes cuda, then mps, then cpu."""


class AdapterConfig(TrainingConfig, FramingOptions, ModelAndData):
    """What distilling and fine-tuning a model on images share."""

    may_change = TrainingConfig.may_change | {
        *("preview_every", "preview_prompts", "preview_images", "preview_clip", "push_to_hub", "workers"),
    }
    needs = {  # noqa: RUF012
        **TrainingConfig.needs,
        **dict.fromkeys(FramingOptions.model_fields, ("data", ANY)),
        **dict.fromkeys(("preview_prompts", "preview_images", "preview_clip"), ("preview_every", ANY)),
    }
    excludes = {  # noqa: RUF012
        **TrainingConfig.excludes,
        **dict.fromkeys(("init_lora", "modules", "lora_alpha", "lora_dropout", "frozen_weights", "shard"), "full"),
    }

    rank: Annotated[int, Field(ge=1, le=1024)] = 64
    """Rank of the LoRA."""
    modules: Modules = "all"
    """What the LoRA adapts: all (that LCM-LoRA does), transformer (the transformer blocks), attention (in these) or
    cross-attention (the part that reads the prompt); or the ends of layers' names, such as to_q,to_k,to_v,to_out.0."""
    lora_alpha: Annotated[float, Field(gt=0)] | None = None
    """The LoRA's output is multiplied by this over --rank. By default it is the rank, so the factor is 1. The result
    holds the factor, and its own weight is 1."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a layer's input features that the student's LoRA does not see, in all places of a picture at once, drawn
    anew for each sample. The target and the teacher see all."""
    frozen_weights: Literal["auto", "fp32", "bf16", "int8", "nf4"] = "auto"
    """How a LoRA's run keeps the weights that it does not train: auto keeps them in --precision, bf16 takes half the
    memory of fp32, int8 a quarter, nf4 an eighth (needs the package bitsandbytes). They are unpacked layer by layer,
    which takes some time, and all arithmetic stays in --precision."""
    shard: bool = False
    """Divide the weights that a LoRA's run does not train among its processes (FSDP2): each keeps a share, and gathers
    a block's weights while it computes. It takes less memory of each GPU, and more time."""
    full: bool = False
    """Train all weights of the network instead of a LoRA."""
    init_lora: Path | None = None
    """Start from this LoRA's weights; its rank must be --rank."""
    drop_captions: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of captions replaced by the empty one."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    preview_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between previews, which the last step has too: pictures that the result draws by then, always of the same
    prompts and noise, a few-step result in 1, 2 and 4 steps. They are in OUT/previews, their scores in quality.jsonl,
    and the result that scored best stays in OUT/best.safetensors (OUT/best with --full). By default there are none."""
    preview_prompts: Path | None = None
    """What the previews draw: a file with a prompt a line, or .jsonl; or a list that ships. By default captions of the
    training data; for emoji those of the drawings that ship, which agreement can judge."""
    preview_images: Annotated[int, Field(ge=1, le=10_000)] = 64
    """How many pictures of each number of steps are drawn and scored; the first 8 are on the sheet."""
    preview_clip: str | None = None
    """The folder or hub id of a CLIP model, which scores how well previews fit their prompts."""
    push_to_hub: str | None = None
    """Upload the result with its card to this repository of the hub, owner/name, when the run ends. It is made private
    before the run begins, if there is none. HF_TOKEN or a login must allow it."""


class DistillConfig(AdapterConfig):
    """Turn a model into a few-step one: latent consistency distillation (LCM-LoRA, arXiv 2311.05556)."""

    needs = {  # noqa: RUF012
        **AdapterConfig.needs,
        "huber_c": ("loss", "huber"),
        "target_decay": ("target", "ema"),
        "w_embedding": ("full", True),
        "prompt_file": ("synthetic", True),
        "images": ("synthetic", True),
        "synthetic_steps": ("synthetic", True),
        "synthetic_guidance_scale": ("synthetic", True),
        **dict.fromkeys(Selection.model_fields, ("data", ANY)),
    }
    excludes = {**AdapterConfig.excludes, "synthetic": "data"}  # noqa: RUF012
    first: ClassVar[tuple[str, ...]] = ("model", "data", "synthetic", "prompt_file", "images", "size")

    synthetic: bool = False
    """Train without images, on pictures that the model draws itself. They are drawn once, before training, at
    --precision from noise of --seed, and are kept in the cache."""
    prompt_file: Path | None = None
    """Only with --synthetic: what to draw, one caption a line, or .jsonl with text; or a list that ships: general,
    names (of things) or typed (as people type). By default the captions that ship for emoji if that is the model, else
    general."""
    images: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Only with --synthetic: how many pictures to draw, of the captions in turn. By default one of each caption, but at
    least 1,000."""
    synthetic_steps: Annotated[int, Field(ge=1, le=1000)] = 10
    """Only with --synthetic: steps of dpm-solver++ for each of these pictures."""
    synthetic_guidance_scale: Annotated[float, Field(ge=1, le=50)] | None = None
    """Only with --synthetic: guidance of these pictures, 1 = off. By default what the model recommends, else 7.5."""
    method: MethodName = "lcd"
    psi: str = "ddim"
    """The ODE solver that steps the teacher: ddim, dpm-solver, dpm-solver-3, dpm-solver++ (its 2S) or heun."""
    k: Annotated[int, Field(ge=1, le=500)] = 20
    """Skipping step: timesteps between s and t. 20 is the published scripts' num_ddim_timesteps of 50, since 1000 / 50
    = 20."""
    guidance_scale: Annotated[float, Field(ge=1, le=50)] = 8.5
    """The teacher's, 1 = off; 8.5 is the report's w = 7.5, since w = guidance_scale - 1 there and in the published
    scripts' w_min and w_max."""
    guidance_scale_max: Annotated[float, Field(ge=1, le=50)] | None = None
    """Draw each sample's guidance uniformly between --guidance-scale and this; by default it is fixed."""
    w_embedding: bool = False
    """Only with --full: the guidance scale becomes an input of the student (LCM, arXiv 2310.04378), so any scale can be
    chosen when sampling, and none costs more. Each training sample draws its scale from a range, by default 3 to 15
    (LCM's w of 2 to 14); --guidance-scale and --guidance-scale-max set another."""
    target: Literal["student", "ema"] = "ema"
    """Whose consistency function is aimed at: the student's own (gradient stopped) or its average's."""
    target_decay: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of the target's average; of --method ct the decay on the first levels (mu_0), which rises with them."""
    loss: Literal["huber", "l2"] = "huber"
    """Distance of the two: pseudo-Huber, or the squared error."""
    huber_c: Annotated[float, Field(gt=0)] = 0.001
    """Pseudo-Huber's width, elementwise."""
    focus: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the samples whose timestep is one that sampling in 1, 2, 4 or 8 steps begins from; the others are
    spread over the whole grid."""
    weighting: Literal["uniform", "inverse-step", "inverse-noise"] = "uniform"
    """Of the samples' distances: all alike, or inverse to how much noise a step takes away (arXiv 2310.14189), or
    inverse to how much noise the sample has. With the last two the details weigh more."""
    grid: Literal["lcm", "quadratic"] = "lcm"
    """Which of its training timesteps the result asks to be sampled at: evenly spaced ones, or ones denser at the
    end."""
    phases: Annotated[int, Field(ge=1, le=1000)] = 5
    """Only for --method pcm: into how many phases the way is divided. A picture takes one step for each phase, or a
    multiple. The number must divide the training grid, which has 50 timesteps at --k 20 and 40 at --k 25."""
    first_levels: Annotated[int, Field(ge=2, le=1000)] = 2
    """Only for --method ct: the number of noise levels at the beginning, the clean one included (the paper's s_0). Not
    for --curriculum easy."""
    last_levels: Annotated[int, Field(ge=2, le=1000)] = 150
    """Only for --method ct: the number of noise levels at the end, without the clean one (the paper's s_1)."""
    curriculum: Literal["square-root", "doubling", "easy"] = "square-root"
    """Only for --method ct: how the number grows. It follows a square root (arXiv 2303.01469), or doubles several times
    (iCT, arXiv 2310.14189). Or the student learns to denoise first, and the steps become shorter then (ECT, arXiv
    2406.14548), which takes far fewer samples."""
    sampler: Literal["auto", "lcm", "tcd"] = "auto"
    """What the result asks to be sampled with; auto is tcd after --method tcd, else lcm. What tcd trained may be
    sampled with either."""

    @model_validator(mode="after")
    def _some_data(self) -> Self:
        if self.data is None and not self.synthetic:
            raise UsageError(
                f"nothing to train on: {option('data')} is missing",
                f"give {option('data')} a folder of images with captions, or add {option('synthetic')} to train on"
                " pictures that the model draws itself",
            )
        return self


class FinetuneConfig(AdapterConfig):
    """Teach a model a style or subject from images: a style LoRA, or with --full a fine-tuned model."""

    data: SourceName
    drop_captions: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of captions replaced by the empty one, so that guidance keeps working."""


class DiagnoseConfig(Config):
    """Explain why a run's pictures are blurry, pale or burnt, from what it recorded: what is seen, why it matters, what
    to change."""

    argument = ("runs", "RUN")

    runs: Annotated[tuple[str, ...], Typed(as_argument=True)] = ()
    """Folders that distill or finetune wrote."""
    as_json: bool = False
    """Print one JSON document."""

    @field_validator("runs")
    @classmethod
    def _some(cls, runs: tuple[str, ...]) -> tuple[str, ...]:
        if not runs:
            raise UsageError("no run was given", "fewstep diagnose RUN")
        return runs
