"""The configs of `fewstep data`, and the fields with which every command chooses among images."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from fewstep.configs.base import Config, Device, ModelName, Typed
from fewstep.configs.conditions import parsed
from fewstep.configs.framing import FramingOptions
from fewstep.errors import UsageError


class Filtering(Config):
    """Which images of a source count."""

    min_size: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Leave out images whose smaller side has fewer pixels."""
    where: str | None = None
    """Leave out images whose columns do not fit, of a table or of the JSON beside an image: 'aesthetic >= 5.5 and
    language = en'. Operators are >= <= > < = !=, joined by and."""
    max_samples: Annotated[int, Field(ge=1)] | None = None
    """The most images: of those that are not left out the first."""

    @field_validator("where")
    @classmethod
    def _condition(cls, where: str | None) -> str | None:
        if where is not None:
            parsed(where)
        return where


class Selection(Filtering):
    """Which images of a source count, and what is done about broken ones."""

    skip_broken: bool = False
    """Leave out images and captions that cannot be read, instead of stopping at the first: every image is looked at
    first. They are counted, and listed in skipped.jsonl of --out."""


class DataConfig(Config):
    """What the commands about images share."""

    argument: ClassVar[tuple[str, str] | None] = ("source", "SOURCE")

    source: Annotated[tuple[str, ...], Typed(as_argument=True)] = ()
    """Images with captions, as distill and finetune take them (docs/data.md)."""
    model: ModelName = "emoji"

    @field_validator("source")
    @classmethod
    def _one(cls, source: tuple[str, ...]) -> tuple[str, ...]:
        if len(source) != 1:
            raise UsageError(f"{len(source)} sources were given, not one", "fewstep data check my-images")
        return source


class DataCheckConfig(Filtering, DataConfig):
    """Tell what is in images with captions before a model learns from them: sizes, shapes, doubles, what is broken,
    captions that are too long for the model."""

    first: ClassVar[tuple[str, ...]] = ("source", "model")

    out: Path | None = None
    """The folder for a picture of the sizes and of what stands out, check.png, and for the list of what is broken,
    skipped.jsonl."""
    as_json: bool = False
    """Print one JSON document."""


class DataEncodeConfig(FramingOptions, Selection, DataConfig):
    """Encode images and captions for a model, for a later run or another machine."""

    first: ClassVar[tuple[str, ...]] = ("source", "model", "size")

    size: Annotated[int, Field(ge=8, le=4096)] | None = None
    """Pixels of the square training images; by default the model's own size."""
    out: Path | None = None
    """The folder for the encoded data, which distill and finetune take in place of images; by default the cache, where
    they find it by themselves."""
    device: Device = "auto"
    """Where to compute; auto takes cuda, then mps, then cpu."""
    as_json: bool = False
    """Print one JSON document."""
