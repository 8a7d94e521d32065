"""The commands as functions: each takes its config, or the config's fields as keywords, and gives back what it made.

`Session`, `sample` and `accelerate` are functions of their own; these are what `fewstep` the package adds to them.
"""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar, cast, overload

from fewstep.commands import merge as merging
from fewstep.configs import CompareConfig, Config, DistillConfig, FinetuneConfig, MergeConfig, build
from fewstep.evaluate.compare import compare as compare_rows
from fewstep.training import run as training

Fields = ParamSpec("Fields")
C = TypeVar("C", bound=Config)
Taken = TypeVar("Taken", contravariant=True)
R = TypeVar("R")
Given = TypeVar("Given", covariant=True)


class FromFields(Protocol[Taken, Fields, Given]):
    """A function of a config, or of the config's fields."""

    @overload
    def __call__(self, config: Taken, /) -> Given: ...
    @overload
    def __call__(self, *args: Fields.args, **fields: Fields.kwargs) -> Given: ...


def from_fields(
    kind: Callable[Fields, C],
) -> Callable[[Callable[[C], R]], FromFields[C, Fields, R]]:
    """Let a function of this config also take the config's fields. A wrong one is a UsageError that names it."""

    def decorated(run: Callable[[C], R]) -> Any:
        @wraps(run)
        def call(config: C | None = None, /, **fields: object) -> R:
            if config is not None and (fields or not isinstance(config, taken)):
                raise TypeError(f"{run.__name__} takes one {taken.__name__}, or its fields by name: {first}=...")
            return run(build(kind, **fields) if config is None else config)  # type: ignore[arg-type]

        taken = cast(type[Config], kind)
        first = taken.argument[0] if taken.argument else next(iter(taken.model_fields))
        taken.model_rebuild()  # until then it has no signature of its own
        call.__signature__ = signature(kind)  # type: ignore[attr-defined]
        return call

    return decorated


class ComparedRows(NamedTuple):
    """What a comparison found, as in its table.json."""

    rows: list[dict[str, object]]  # in order; each with its spec, nfe, times and what was measured
    protocol: dict[str, object]  # what the figures rest on
    out: Path  # the folder of table.md, report.html and the pictures


@from_fields(DistillConfig)
def distill(config: DistillConfig) -> Path:
    """The file of the few-step LoRA that was distilled, or with `full` the folder of the model."""
    return training.distill(config).result


@from_fields(FinetuneConfig)
def finetune(config: FinetuneConfig) -> Path:
    """The file of the LoRA that was trained, or with `full` the folder of the model."""
    return training.finetune(config).result


@from_fields(MergeConfig)
def merge(config: MergeConfig) -> Path:
    """The file that the sum was written to; with `into` the model it was folded into."""
    merging.merge(config)
    return config.out


@from_fields(CompareConfig)
def compare(config: CompareConfig) -> ComparedRows:
    """The rows, measured; they, their pictures and a report are in `out`."""
    document = compare_rows(config)
    return ComparedRows(document["rows"], document["protocol"], config.out)
