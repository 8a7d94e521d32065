"""What the limits are measured with: ways to draw, estimates over pictures, prompts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from fewstep import __version__
from fewstep.assets import ACCELERATION, MODEL, shipped_lora
from fewstep.data.prompts import Prompt
from fewstep.evaluate.row_pictures import RowPictures
from fewstep.lora.files import open_lora
from fewstep.metrics.estimate import Estimate, estimate
from fewstep.metrics.sharpness import sharpness
from studies.lab import Lab, names, take

CELL = 96  # pixels of a picture of a sheet
DECILE = 10  # the worst tenth
TINY = 1e-12


class Way(NamedTuple):
    """A way to draw."""

    solver: str
    steps: int
    lora: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As a row of compare."""
        return f"{self.solver}:{self.steps}"


def lcm(steps: int, *others: str) -> Way:
    """The student, with other LoRAs beside its own."""
    return Way("lcm", steps, (*others, ACCELERATION))


STUDENT, TEACHER, TRUTH = lcm(4), Way("dpm-solver++", 25), Way("ddim", 100)
STUDENT_STEPS = (1, 2, 4, 8)


class Bench(NamedTuple):
    """What measures, and how much of it."""

    lab: Lab
    exact: Lab  # in fp32, where pictures differ by little
    images: int
    paths: int

    def draw(
        self, way: Way, prompts: Sequence[Prompt], model: str = MODEL, lab: Lab | None = None, **options: Any
    ) -> RowPictures:
        """A picture of each prompt, seeds counting up; lab: which draws, by default the fast one."""
        texts, title = [prompt.text for prompt in prompts], f"{Path(model).name} {way.name}"
        return (lab or self.lab).draw(texts, model, way.lora, title, **options_of(way) | options)

    @property
    def names(self) -> tuple[Prompt, ...]:
        """Names of things, one a picture."""
        return take(names(), self.images)


def options_of(way: Way) -> dict[str, Any]:
    """Of Draw: the teacher draws at the guidance that the student was distilled at."""
    options: dict[str, Any] = {"solver": way.solver, "steps": way.steps}
    return options if way.solver == STUDENT.solver else options | {"guidance_scale": distilled_at()}


def distilled_at() -> float:
    """The guidance that is distilled into the shipped LoRA, the mean where it was drawn."""
    file = shipped_lora(ACCELERATION)
    assert file is not None
    recipe = open_lora(file).recipe
    assert recipe is not None
    assert recipe.teacher_guidance_scale is not None
    return sum(recipe.teacher_guidance_scale) / 2


class Measured(NamedTuple):
    """A section."""

    figures: dict[str, Any]
    pictures: dict[str, Image.Image]  # by name


def of_values(what: Callable[[Tensor], float], values: Tensor) -> Estimate:
    """What is made of values (N,), one a picture."""
    return estimate(lambda images: what(values[images].double()), len(values))


def mean(values: Tensor) -> float:
    """Of (N,)."""
    return float(values.mean())


def median(values: Tensor) -> float:
    """Of (N,); of an even number the mean of the middle two."""
    return float(values.quantile(0.5))


def worst_decile(values: Tensor) -> float:
    """The mean of the largest tenth of (N,), of one at least."""
    return float(values.topk(-(-len(values) // DECILE)).values.mean())


def sharper(pictures: RowPictures, than: RowPictures) -> Estimate:
    """The mean sharpness over that of others, of the same prompts and noise."""
    own, other = sharpness(pictures.batches()), sharpness(than.batches())
    return estimate(lambda images: float(own[images].mean() / other[images].mean()), len(own))


def facts(bench: Bench) -> dict[str, Any]:
    """What every section depends on."""
    lcm_sha256 = bench.lab.session(lora=(ACCELERATION,))[0].loras[0]["sha256"]
    bare, around = bench.lab.session()
    return {
        "fewstep": __version__,
        "model_sha256": around["model_sha256"],
        "lcm_sha256": lcm_sha256,
        "images": bench.images,
        "guidance_scale": distilled_at(),
        "dtype": bench.lab.dtype,
        "device": bare.engine.device.type,
    }


def with_changes(keys: Sequence[str], values: Sequence[Estimate], teacher: Sequence[Estimate]) -> dict[str, Any]:
    """Values by name as data, and as NAME_change each less the teacher's."""
    named = zip(keys, values, teacher, strict=True)
    changes = {f"{name}_change": value.less(of_teacher).numbers for name, value, of_teacher in named}
    return {name: value.numbers for name, value in zip(keys, values, strict=True)} | changes
