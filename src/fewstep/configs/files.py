"""The configs of the commands that work on files: merge, resize, difference, inspect, export, list, doctor."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from fewstep.configs.base import Config, ModelName, Precision, Typed
from fewstep.errors import UsageError, option


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
    dtype: Literal["auto"] | Precision = "auto"
    """Precision of the file; auto: the widest that is read, so that a sum of fp32 files is fp32. All arithmetic is in
    fp32."""
    overwrite: bool = False
    """Replace --out if it is there already; a model's folder never is."""
    as_json: bool = False
    """Print one JSON document about what was done."""


LoraFiles = Annotated[tuple[str, ...], Typed(as_argument=True)]


class SumOutput(AdapterOutput):
    """What the commands that write LoRAs again share."""

    model: str | None = None
    """The model they are for, which a DoRA needs; by default the family that has all their modules."""
    allow_partial: bool = False
    """Leave out modules that have no place in the model, instead of stopping."""


class MergeConfig(SumOutput):
    """Add LoRAs up, exactly: sum of WEIGHT x LoRA over any ranks, layouts and signs, to one file or into a model."""

    argument = ("files", "LORA")
    excludes = dict.fromkeys(("rank", "energy", "dialect", "dtype", "model", "max_rank"), "into")

    files: LoraFiles = ()
    """FILE, FILE:WEIGHT or FILE:WEIGHT,BLOCK=WEIGHT,... with blocks te, te1, te2, down, mid, up, down0, up1, ..."""
    into: str | None = None
    """Fold the sum into this model, a diffusers folder or a .safetensors checkpoint, and write that to --out."""
    max_rank: Annotated[int, Field(ge=1)] = 512
    """Refuse to write a module of a higher rank, unless --rank or --energy cuts it."""

    @field_validator("files")
    @classmethod
    def _some(cls, files: tuple[str, ...]) -> tuple[str, ...]:
        if not files:
            raise UsageError("no LoRA was given", "fewstep merge style.safetensors:0.8 lcm --out both.safetensors")
        return files


class ExportConfig(Config):
    """Write a model with its LoRAs folded in, ready for another program, its sampler and a model card with it."""

    needs = {"consumer": ("to", "openvino")}  # noqa: RUF012

    model: ModelName = "emoji"
    loras: Annotated[tuple[str, ...], Typed(with_default=False)] = ()
    """FILE or FILE:WEIGHT, several times to add several LoRAs, as sample takes them; lcm is the default for emoji."""
    to: Literal["diffusers", "openvino", "onnx"] = "diffusers"
    """diffusers: a model folder for its pipelines, and for every program that reads such folders. openvino, onnx: the
    networks as graphs, in the layout of optimum-intel's folders; sample draws with them, and so do other programs."""
    consumer: Literal["any", "genai"] = "any"
    """genai: refuse a model that OpenVINO GenAI would sample wrongly."""
    dtype: Literal["auto", "fp32", "fp16"] = "auto"
    """How openvino's and onnx's weights are stored; auto is fp16 for openvino, and fp32 for onnx, where fp16 is for
    GPUs. diffusers' folder keeps the types of the model."""
    out: Path
    """The folder to write; it must not be there yet."""
    as_json: bool = False
    """Print one JSON document about what was written."""

    @model_validator(mode="after")
    def _of_graphs(self) -> Self:
        """Raise UsageError for a type of weights that a folder for diffusers would not have."""
        if self.to == "diffusers" and self.dtype != "auto":
            raise UsageError(
                f"{option('dtype')} has no effect with {option('to')} diffusers", f"add {option('to')} openvino or onnx"
            )
        return self


class ResizeConfig(SumOutput):
    """Write a LoRA again at a lower rank: the best there is of that rank, and what it loses."""

    argument = ("files", "LORA")

    files: LoraFiles = ()
    """The LoRA, one."""

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

    files: LoraFiles = ()
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
    """Tell what a LoRA is: layout, family, coverage, ranks, strength, how it wants to be sampled; or how a picture was
    drawn."""

    argument = ("files", "FILE")

    files: LoraFiles = ()
    """LoRAs, by file or name as sample takes them, and pictures that sample wrote."""
    model: str | None = None
    """Check LoRAs against this model; by default against every family."""
    as_json: bool = False
    """Print one JSON document."""

    @field_validator("files")
    @classmethod
    def _some(cls, files: tuple[str, ...]) -> tuple[str, ...]:
        if not files:
            raise UsageError("no file was given", "fewstep inspect FILE")
        return files


class ListConfig(Config):
    """Tell what there is: what ships, short names of models and LoRAs on the hub, engines, solvers, and the cache."""

    as_json: bool = False
    """Print one JSON document."""


class DoctorConfig(Config):
    """Check whether this machine is ready: packages, devices, memory, cache folder."""

    prune: Annotated[int, Field(ge=0)] | None = None
    """First delete from the cache what it has held for so many days: compare's pictures, encoded images, and networks
    built for an engine, all of which are made again when they are needed. 0 empties it."""
    as_json: bool = False
    """Print one JSON document."""
