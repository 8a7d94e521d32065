"""The fields with which commands choose among images."""

from typing import Annotated

from pydantic import Field, field_validator

from fewstep.configs.base import Config
from fewstep.configs.conditions import parsed


class Selection(Config):
    """Which images of a source count."""

    min_size: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Leave out images whose smaller side has fewer pixels."""
    where: str | None = None
    """Leave out images whose columns do not fit, of a table or of the JSON beside an image: 'aesthetic >= 5.5 and
    language = en'. Operators are >= <= > < = !=, joined by and."""
    skip_broken: bool = False
    """Leave out images and captions that cannot be read, instead of stopping at the first: every image is looked at
    first. They are counted, and listed in skipped.jsonl of --out."""
    max_samples: Annotated[int, Field(ge=1)] | None = None
    """The most images, of those that are not left out the first."""

    @field_validator("where")
    @classmethod
    def _condition(cls, where: str | None) -> str | None:
        if where is not None:
            parsed(where)
        return where
