"""What decides a picture beside the model: prompts, steps, guidance, seeds, and pictures to start from."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypedDict, TypeVar

from pydantic import Field, ValidationInfo, field_validator

from fewstep.configs.base import ANY, Config, Grid, Solver, Typed, build
from fewstep.errors import UsageError, option

if TYPE_CHECKING:
    from PIL.Image import Image

File = TypeVar("File", bytes, Path)  # a picture: what is in its file, or where that lies


class Drawing(Config, Generic[File]):
    """What is to be drawn; `Draw` holds the pictures it starts from, the command line's config their files."""

    needs = {  # noqa: RUF012
        "strength": ("image", ANY),
        "mask": ("image", ANY),
        "outpaint": ("image", ANY),
        "sketch": ("control_image", ANY),
        "control_scale": ("control_image", ANY),
        "nag_scale": ("negative_prompt", ANY),
    }
    excludes = {"mask": "outpaint"}  # noqa: RUF012

    prompts: Annotated[tuple[str, ...], Typed(as_argument=True)] = ()
    """What to draw; several prompts give several pictures."""
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """How many steps to draw in: network calls of one branch. By default what the LoRA was trained for, else 20."""
    solver: Solver = "auto"
    """auto follows the LoRA's recipe. euler and dpm-solver-1 are other names of ddim, which makes the same step."""
    eta: Annotated[float, Field(ge=0, le=1)] | None = None
    """Only for --solver ddim. 0, the default, is deterministic; 1 adds as much fresh noise as DDPM and euler-a."""
    gamma: Annotated[float, Field(ge=0, le=1)] | None = None
    """Only for --solver tcd: how far past the next timestep it jumps before it adds noise. 0 is ddim; the default is
    0.3."""
    grid: Grid = "auto"
    """Spacing of the timesteps. auto is what the LoRA asks for, lcm or quadratic (denser at the end) of its training
    grid, else trailing."""
    k: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Only for the grids lcm and quadratic: the training grid has every k-th timestep. By default the LoRA's own k,
    else 20."""
    guidance_scale: Annotated[float, Field(ge=0, le=50)] | None = None
    """How strictly the prompt is followed. 1 = off; by default what the LoRA was trained for, else 7.5."""
    negative_prompt: Annotated[str, Typed(with_default=False)] = ""
    """What to keep away from. It works with a guidance scale above 1, or with --nag-scale."""
    nag_scale: Annotated[float, Field(ge=1, le=50)] = 1.0
    """Leads attention away from --negative-prompt, which works at guidance 1 too. 1 = off; 5 is usual."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """What the first picture's noise is drawn from; the next pictures count up from it."""
    count: Annotated[int, Field(ge=1, le=10000)] = 1
    """Pictures per prompt."""
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 8
    """Pictures drawn at once; lower it when memory runs out."""
    width: Annotated[int, Field(ge=8, le=8192)] | None = None
    """Pixels, a multiple of the autoencoder's factor (8); by default the model's own size."""
    height: Annotated[int, Field(ge=8, le=8192)] | None = None
    """Pixels, likewise."""
    image: File | None = None
    """A picture to start from (image-to-image)."""
    strength: Annotated[float, Field(gt=0, le=1)] | None = None
    """How far to go from --image: near 0 keeps it, 1 forgets it. The default is 0.6, and 1 with --mask or --outpaint.
    The steps stay as many as asked."""
    mask: File | None = None
    """What of --image to draw anew (inpainting): a picture, white there and black elsewhere; grey mixes."""
    outpaint: str | None = None
    """Pixels to add to --image and draw (outpainting): one number for all sides, or LEFT,TOP,RIGHT,BOTTOM."""
    control_image: File | None = None
    """What the ControlNet follows, as it was trained on: edges, depth, a pose, a scribble in white on black."""
    sketch: bool = False
    """--control-image is dark lines on light paper: it is turned over to white on black."""
    control_scale: Annotated[float, Field(ge=0, le=10)] = 1.0
    """How strictly the ControlNet is followed."""


def no_prompt() -> UsageError:
    """The refusal to draw nothing."""
    return UsageError("no prompt was given", 'write what to draw: fewstep sample "a red fox"', "prompts")


class Draw(Drawing[bytes]):
    """What decides a picture. Pictures it starts from are bytes of PNG, JPEG or WebP files: a request names no file."""

    @field_validator("prompts")
    @classmethod
    def _some_prompt(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        if not prompts:
            raise no_prompt()
        return prompts

    @field_validator("image", "mask", "control_image", mode="before")
    @classmethod
    def _bytes(cls, picture: Any, field: ValidationInfo) -> Any:
        if isinstance(picture, str | Path):
            name = field.field_name or "image"
            raise UsageError(f"{option(name)} {picture} is a name, not a picture", "open it with PIL.Image.open", name)
        return picture_bytes(picture)


def picture_bytes(picture: Any) -> Any:
    """A PIL image as the bytes of a PNG; anything else as it is."""
    if not hasattr(picture, "save"):
        return picture
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


class DrawOptions(TypedDict, total=False):
    """The fields of `Draw` as keywords. A test holds the two against each other."""

    steps: int | None
    solver: Solver
    eta: float | None
    gamma: float | None
    grid: Grid
    k: int | None
    guidance_scale: float | None
    negative_prompt: str
    nag_scale: float
    seed: int
    count: int
    batch_size: int
    width: int | None
    height: int | None
    image: "bytes | Image | None"
    strength: float | None
    mask: "bytes | Image | None"
    outpaint: str | None
    control_image: "bytes | Image | None"
    sketch: bool
    control_scale: float


def draw_of(prompts: "str | Sequence[str] | Draw", options: DrawOptions) -> Draw:
    """The Draw of prompts and keywords, or of a Draw with some fields changed. Raises UsageError naming a bad one."""
    if isinstance(prompts, Draw):
        return build(Draw, **{**prompts.model_dump(exclude_unset=True), **options})
    return build(Draw, prompts=(prompts,) if isinstance(prompts, str) else prompts, **options)
