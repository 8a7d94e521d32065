"""The config of the command that measures speed: bench."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from fewstep.configs.base import Config, Device, ModelName, Typed
from fewstep.configs.where import DType, Loras


class BenchConfig(Config):
    """Measure time and memory of a picture, by its parts, beside diffusers and the floor of this machine."""

    excludes = {"random": "model"}  # noqa: RUF012

    model: ModelName = "emoji"
    random: Literal["sd15", "sd21", "ssd-1b", "sdxl"] | None = None
    """Measure a model of this family at full size instead, with random weights and a random LoRA of rank 64. It is
    written to the cache folder for the time of the run: 8 GB for sd15, 22 GB for sdxl."""
    loras: Loras | None = None
    """FILE or FILE:WEIGHT, several times to add several LoRAs, as sample takes them; lcm is the default for emoji."""
    engine: Annotated[tuple[str, ...], Field(min_length=1), Typed(several=True)] = ("auto",)
    """What runs the networks: one engine or several, as in torch,openvino. fewstep list names them. One that is not
    installed is marked in the table."""
    decoder: str = "auto"
    """fewstep's decoder, as sample takes it: auto, full, tiled, tiny, or an AutoencoderTiny. diffusers takes full."""
    accuracy: bool = False
    """Also draw one picture in fp32 in torch, and say how near the others of fewstep are to it: their PSNR. Random
    weights say little about it."""
    alone: bool = False
    """Leave diffusers out."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 4
    """Steps of a picture: network calls of one branch."""
    guidance_scale: Annotated[float, Field(ge=0, le=50)] = 1.0
    """Guidance; 1 = off, and any other costs a second row of the network."""
    width: Annotated[int, Field(ge=8, le=8192)] | None = None
    """Pixels; by default the model's own size."""
    height: Annotated[int, Field(ge=8, le=8192)] | None = None
    """Pixels, likewise."""
    rounds: Annotated[int, Field(ge=1, le=1000)] = 3
    """How often each arrangement has its turn, each time in a fresh process."""
    pictures: Annotated[int, Field(ge=1, le=1000)] = 3
    """Pictures one after another in a turn, after the first, which is counted apart. One that takes over a minute is
    drawn once."""
    largest_batch: Annotated[int, Field(ge=1, le=1024)] = 32
    """Up to how many pictures are drawn together, to find the batch that gives the most pictures a second."""
    dtype: DType = "auto"
    device: Device = "auto"
    """Where to compute; auto takes cuda, then mps, then cpu."""
    out: Path = Path("bench")
    """The folder for table.md, bench.json and bench.png; those of an earlier run are replaced."""
    as_json: bool = False
    """Print one JSON document instead of the table."""

    @field_validator("engine", mode="before")
    @classmethod
    def _names(cls, given: Any) -> Any:
        """Names between commas are several."""
        texts = (given,) if isinstance(given, str) else given
        return tuple(dict.fromkeys(name.strip() for text in texts for name in str(text).split(",") if name.strip()))
