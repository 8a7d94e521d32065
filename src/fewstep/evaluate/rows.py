"""What one row of a comparison draws, as it is typed: SOLVER[,OPTION=VALUE]...:STEPS[@GUIDANCE][+LORA:WEIGHT]..."""

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
OPTIONS = {  # after the solver, and what may be written there
    "eta": r"[0-9]*\.?[0-9]+",
    "gamma": r"[0-9]*\.?[0-9]+",
    "grid": "|".join(get_args(Grid)),
    "k": "[0-9]{1,6}",
}
READ = {"eta": float, "gamma": float, "grid": str, "k": int}  # what is written, as a value
BEST = "best"  # typed as a guidance
HEAD = re.compile(
    r"(?P<solver>[^:@,]+)(?P<options>(,[^:@,]*)*):(?P<steps>[^@+]*)(@(?P<guidance>[^+]*))?(?P<loras>\+.*)?"
)
LORA = re.compile(
    r"\+(.+?:-?[0-9.]+(?:,[a-z0-9]+=-?[0-9.]+)*)(?=\+|$)"
)  # a file's name may hold a + too: its term ends with a weight


class RowSpec(NamedTuple):
    """A way to sample."""

    text: str  # as typed
    solver: str
    steps: int
    guidance_scale: float | None  # None is what the model or LoRA recommends, or to be found
    loras: tuple[str, ...]  # FILE:WEIGHT each
    eta: float | None = None  # None is the solver's own
    gamma: float | None = None
    grid: Grid = "auto"
    k: int | None = None  # None is the LoRA's own, else 20
    best: bool = False  # the guidance is to be found, by KID


def parse_row(text: str) -> RowSpec:
    """The row that was typed. Raises UsageError with the row and what is wrong in it; no file is opened."""
    head = HEAD.fullmatch(text.strip())
    if head is None:
        raise UsageError(f"{option('rows')} {text}: this is not SOLVER:STEPS", f"a row is {GRAMMAR}")
    solver, steps, guidance = head["solver"], head["steps"], head["guidance"]
    if solver not in SOLVERS:
        raise UsageError(f"{option('rows')} {text}: unknown solver {solver!r}", f"known ones: {', '.join(SOLVERS)}")
    if not re.fullmatch("[0-9]{1,6}", steps):
        raise UsageError(f"{option('rows')} {text}: steps {steps!r} are no whole number", f"a row is {GRAMMAR}")
    calls = SOLVERS[solver].calls
    if int(steps) % calls:
        raise UsageError(
            f"{option('rows')} {text}: {solver} makes {calls} network calls a step, so {steps} do not come out even",
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
    """What stands after the solver: ,eta=0.5 or ,gamma=0.2 or ,grid=quadratic or ,k=100."""
    found: dict[str, Any] = {}
    for term in terms.split(",")[1:]:
        name, _, value = term.partition("=")
        if name not in OPTIONS or not re.fullmatch(OPTIONS[name], value):
            known = f"eta=NUMBER, gamma=NUMBER, k=NUMBER or grid={'|'.join(get_args(Grid))}"
            raise UsageError(f"{option('rows')} {text}: {term!r} is no {known}", f"a row is {GRAMMAR}")
        found[name] = READ[name](value)
    return found


def _number(guidance: str, text: str) -> float:
    try:
        return float(guidance)
    except ValueError:
        raise UsageError(
            f"{option('rows')} {text}: guidance {guidance!r} is no number", "write @1 for none, @7.5, or @best"
        ) from None


def _loras(terms: str, text: str) -> tuple[str, ...]:
    found = tuple(LORA.findall(terms))
    rest = LORA.sub("", terms)
    if rest:
        raise UsageError(f"{option('rows')} {text}: {rest!r} is no LORA:WEIGHT", f"a row is {GRAMMAR}")
    return found


@contextmanager
def naming(row: RowSpec) -> Iterator[None]:
    """Errors of the block name the row."""
    try:
        yield
    except FewstepError as error:
        raise type(error)(f"{option('rows')} {row.text}: {error.message.marked}", error.hint) from error


def draw_of(row: RowSpec, config: CompareConfig, prompts: tuple[str, ...]) -> Draw:
    """What a session draws for these prompts as the row says, seeds counting up from 0.

    Raises UsageError or FewstepError naming the row for values out of range and LoRA files that are not there.
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
    """The LoRAs of the row; where it names none, those that go with the model and the solver by themselves."""
    return row.loras or default_loras(model, row.solver)


def _check_there(lora: str) -> None:
    try:
        _ = parse_reference(lora).file
    except FewstepError as error:
        raise FewstepError(
            error.message, "write the path of a .safetensors file, or the name of a LoRA that ships"
        ) from None
