"""The config of the command that draws a sequence of frames."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from fewstep.configs.base import Grid, Solver, Typed
from fewstep.configs.drawing import Output
from fewstep.configs.where import Where
from fewstep.errors import UsageError, option


class StreamConfig(Output, Where):
    """Draw a sequence of frames anew after a prompt, as a video or a camera gives them."""

    argument = ("prompts", "PROMPT")
    first: ClassVar[tuple[str, ...]] = ("frames", "model", "loras", "steps", "strength", "out")

    prompts: Annotated[tuple[str, ...], Typed(as_argument=True)] = ()
    """What to draw; one prompt."""
    frames: str
    """A folder of pictures, in the order of their names; a video file (its package av must be installed); or - for
    pictures one after another on stdin: PNG or JPEG, as ffmpeg -f image2pipe writes them."""
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """As for sample. So many frames are under way at once, and each takes so many frames' time to come out."""
    strength: Annotated[float, Field(gt=0, le=1)] = 0.6
    """How far to go from each frame: near 0 keeps it, 1 forgets it."""
    out: Path = Path("images")
    """The folder for the pictures: frame-00001, frame-00002 and so on. None is written over another: a name that is
    taken is numbered."""
    solver: Solver = "auto"
    """One that remembers no earlier steps: lcm, tcd, ddim, dpm-solver++2s."""
    grid: Grid = "auto"
    """Spacing of the timesteps, as for sample."""
    guidance_scale: Annotated[float, Field(ge=0, le=50)] | None = None
    """How strictly the prompt is followed. 1 = off; by default what the LoRA was trained for, else 7.5."""
    negative_prompt: Annotated[str, Typed(with_default=False)] = ""
    """What to keep away from. It works with a guidance scale above 1."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """All frames have its noise, so that what stands still stays."""
    width: Annotated[int, Field(ge=8, le=8192)] | None = None
    """Pixels; by default the model's own size."""
    height: Annotated[int, Field(ge=8, le=8192)] | None = None
    """Pixels, likewise."""
    most: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many frames; by default at the end."""

    @field_validator("prompts")
    @classmethod
    def _one(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        if len(prompts) != 1:
            raise UsageError(
                f"{len(prompts)} prompts were given, not one",
                f'fewstep stream "a red fox" {option("frames")} video.mp4',
                "prompts",
            )
        return prompts
