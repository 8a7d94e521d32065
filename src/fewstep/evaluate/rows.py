"""A row of a comparison, as people type it: SOLVER[,OPTION=VALUE]...:STEPS[@GUIDANCE][+LORA:WEIGHT]..."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, get_args

from fewstep.configs import CompareConfig, Draw, Grid, build
from fewstep.diffusion.solvers import SOLVERS
from fewstep.errors import FewstepError, UsageError, option
from fewstep.models.references import parse_reference
from fewstep.session.loras import default_loras

GRAMMAR = "SOLVER:STEPS[@GUIDANCE][+LORA:WEIGHT]..., such as ddim:32@7.5, tcd,gamma=0.2:4 or lcm:4+lcm:1+style:0.8"
OPTIONS = {  # option after the solver -> pattern of its value
    "eta": r"[0-9]*\.?[0-9]+",
    "gamma": r"[0-9]*\.?[0-9]+",
    "grid": "|".join(get_args(Grid)),
    "k": "[0-9]{1,6}",
}
READ = {"eta": float, "gamma": float, "grid": str, "k": int}  # option -> type of its value
BEST = "best"  # stands for the guidance to be found
HEAD = re.compile(
    r"(?P<solver>[^:@,]+)(?P<options>(,[^:@,]*)*):(?P<steps>[^@+]*)(@(?P<guidance>[^+]*))?(?P<loras>\+.*)?"
)
LORA = re.compile(
    r"\+(.+?:-?[0-9.]+(?:,[a-z0-9]+=-?[0-9.]+)*)(?=\+|$)"
)  # a file's name may contain a + too; its term ends with a weight


class RowSpec(NamedTuple):
    """A way to sample."""

    text: str  # as typed
    solver: str
    steps: int
    guidance_scale: float | None  # None = the model's or LoRA's recommendation, or to be found
    loras: tuple[str, ...]  # each FILE:WEIGHT
    eta: float | None = None  # None = the solver's default
    gamma: float | None = None
    grid: Grid = "auto"
    k: int | None = None  # None = the LoRA's, else 20
    best: bool = False  # the guidance is to be found, by KID


def parse_row(text: str) -> RowSpec:
    """The row in a typed text. Raises UsageError that names the row and the fault. No file is opened."""
    head = HEAD.fullmatch(text.strip())
    if head is None:
        raise UsageError(f"{option('rows')} {text}: this is not SOLVER:STEPS", f"a row is {GRAMMAR}")
    solver, steps, guidance = head["solver"], head["steps"], head["guidance"]
    if solver not in SOLVERS:
        raise UsageError(f"{option('rows')} {text}: unknown solver {solver!r}", f"known ones: {', '.join(SOLVERS)}")
    if not re.fullmatch("[0-9]{1,6}", steps):
        raise UsageError(f"{option('rows')} {text}: steps {steps!r} is not a whole number", f"a row is {GRAMMAR}")
    calls = SOLVERS[solver].calls
    if int(steps) % calls:
        raise UsageError(
            f"{option('rows')} {text}: {solver} makes {calls} network calls a step, but {steps} is not a multiple",
            f"use a multiple of {calls}",
        )
    return RowSpec(
        text.strip(),
        solver,
        int(steps),
        None if guidance in (None, BEST) else _number(guidance, text),
        _loras(head["loras"] or "", text),
        **_options(head["options"], text),
        best=guidance == BEST,
    )


def _options(terms: str, text: str) -> dict[str, Any]:
    """The options after the solver, such as ,eta=0.5 or ,gamma=0.2 or ,grid=quadratic or ,k=100."""
    found: dict[str, Any] = {}
    for term in terms.split(",")[1:]:
        name, _, value = term.partition("=")
        if name not in OPTIONS or not re.fullmatch(OPTIONS[name], value):
            known = f"eta=NUMBER, gamma=NUMBER, k=NUMBER or grid={'|'.join(get_args(Grid))}"
            raise UsageError(f"{option('rows')} {text}: {term!r} is not {known}", f"a row is {GRAMMAR}")
        found[name] = READ[name](value)
    return found


def _number(guidance: str, text: str) -> float:
    try:
        return float(guidance)
    except ValueError:
        raise UsageError(
            f"{option('rows')} {text}: guidance {guidance!r} is not a number", "write @1 for none, @7.5, or @best"
        ) from None


def _loras(terms: str, text: str) -> tuple[str, ...]:
    found = tuple(LORA.findall(terms))
    rest = LORA.sub("", terms)
    if rest:
        raise UsageError(f"{option('rows')} {text}: {rest!r} is not LORA:WEIGHT", f"a row is {GRAMMAR}")
    return found


@contextmanager
def naming(row: RowSpec) -> Iterator[None]:
    """Errors inside the block name the row."""
    try:
        yield
    except FewstepError as error:
        raise type(error)(f"{option('rows')} {row.text}: {error.message.marked}", error.hint) from error


def draw_of(row: RowSpec, config: CompareConfig, prompts: tuple[str, ...]) -> Draw:
    """The request of the row for these prompts, with seeds counting up from 0.

    Raises UsageError or FewstepError that names the row, for values out of range and missing LoRA files.
    """
    with naming(row):
        for lora in row.loras:
            _check_there(lora)
        return build(
            Draw,
            prompts=prompts,
            solver=row.solver,
            steps=row.steps,
            guidance_scale=row.guidance_scale,
            eta=row.eta,
            gamma=row.gamma,
            grid=row.grid,
            k=row.k,
            batch_size=config.batch_size,
        )


def loras_of(row: RowSpec, model: str) -> tuple[str, ...]:
    """The LoRAs of the row; if it names none, the default ones for the model and the solver."""
    return row.loras or default_loras(model, row.solver)


def _check_there(lora: str) -> None:
    try:
        _ = parse_reference(lora).file
    except FewstepError as error:
        raise FewstepError(
            error.message, "write the path of a .safetensors file, or the name of a LoRA that ships"
        ) from None
