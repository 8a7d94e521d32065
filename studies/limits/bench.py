"""What the limits are measured with: ways to draw, estimates over pictures, the prompts that ship."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from fewstep import __version__
from fewstep.assets import ACCELERATION, MODEL
from fewstep.evaluate.prompts import Prompt, shipped_prompts
from fewstep.evaluate.row_pictures import RowPictures
from fewstep.metrics.estimate import Estimate, estimate
from fewstep.metrics.frechet import Statistics
from studies.lab import Lab, base_styles, drawings_of, take

CELL = 96  # pixels of a picture of a sheet
DECILE = 10  # the worst tenth
STUDENT_STEPS = (1, 2, 4, 8)
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

    @property
    def options(self) -> dict[str, Any]:
        """Of SampleConfig."""
        return {"solver": self.solver, "steps": self.steps}


def lcm(steps: int, *others: str) -> Way:
    """The student, with other LoRAs beside its own."""
    return Way("lcm", steps, (*others, ACCELERATION))


TEACHER, SMOOTH_TEACHER, TRUTH = Way("dpm-solver++", 25), Way("dpm-solver++", 20), Way("ddim", 100)


class Bench(NamedTuple):
    """What measures, and how much of it."""

    lab: Lab
    images: int
    paths: int
    earlier: tuple[tuple[str, str], ...] = ()  # models and their LoRAs
    full_lcm: str | None = None

    def draw(self, way: Way, prompts: Sequence[Prompt], model: str = MODEL, **options: Any) -> RowPictures:
        """A picture of each prompt, seeds counting up."""
        texts, title = [prompt.text for prompt in prompts], f"{Path(model).name} {way.name}"
        return self.lab.draw(texts, model, way.lora, title, **way.options, **options)


class Measured(NamedTuple):
    """A section."""

    figures: dict[str, Any]
    pictures: dict[str, Image.Image]  # by name


class Quality(NamedTuple):
    """What pictures are."""

    agreement: Estimate
    distance: Estimate

    def less(self, other: "Quality") -> "Quality":
        """The differences, paired."""
        return Quality(self.agreement.less(other.agreement), self.distance.less(other.distance))

    @property
    def numbers(self) -> dict[str, Any]:
        """As data."""
        return {name: value.numbers for name, value in self._asdict().items()}


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


def all_base(lab: Lab) -> Statistics:
    """The real drawings of the base styles, all together."""
    return drawings_of(lab.reference, base_styles())


def shipped(bench: Bench) -> tuple[Prompt, ...]:
    """The captions that ship, one a picture."""
    return take(shipped_prompts().prompts, bench.images)


def judged(bench: Bench, pictures: RowPictures, prompts: Sequence[Prompt], target: Statistics) -> Quality:
    """Agreement, and distance to the real drawings."""
    return Quality(bench.lab.agreement(pictures, prompts), bench.lab.distance(pictures, target))


def facts(bench: Bench) -> dict[str, Any]:
    """What every section depends on."""
    lcm_sha256 = bench.lab.session(lora=(ACCELERATION,))[0].loras[0]["sha256"]
    bare, around = bench.lab.session()
    plan = bare.plan(bench.lab.wish(("",), **TEACHER.options))
    return {
        "fewstep": __version__,
        "model_sha256": around["model_sha256"],
        "lcm_sha256": lcm_sha256,
        "images": bench.images,
        "guidance_scale": plan.guidance_scale,
        "dtype": bench.lab.dtype,
        "device": bare.engine.device.type,
    }


def with_changes(names: Sequence[str], values: Sequence[Estimate], teacher: Sequence[Estimate]) -> dict[str, Any]:
    """Values by name as data, and as NAME_change each less the teacher's."""
    named = zip(names, values, teacher, strict=True)
    changes = {f"{name}_change": value.less(of_teacher).numbers for name, value, of_teacher in named}
    return {name: value.numbers for name, value in zip(names, values, strict=True)} | changes
