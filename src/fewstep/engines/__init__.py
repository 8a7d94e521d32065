"""Engines run a model's networks. Each is a file in this folder, named as people type it, that defines ENGINE."""

from importlib import import_module
from pkgutil import iter_modules

from fewstep.configs import Config, Where, option_name
from fewstep.engines.engine import OPTIONAL, Capabilities, Engine, Facts, NetworkOptions
from fewstep.errors import UsageError

DEFAULT = "torch"

__all__ = [
    "Capabilities",
    "Engine",
    "Facts",
    "NetworkOptions",
    "check_supported",
    "engine_kind",
    "engine_names",
    "open_engine",
]


def engine_names() -> list[str]:
    """The names of the engines. None is imported."""
    return [file.name for file in iter_modules(__path__) if file.name != "engine" and not file.ispkg]


def engine_kind(name: str) -> type[Engine]:
    """The engine of that name; auto is the default engine. Raises UsageError for an unknown name."""
    name = DEFAULT if name == "auto" else name
    if name not in engine_names():
        raise UsageError(f"unknown engine {name!r}", f"known ones: auto, {', '.join(engine_names())}")
    kind: type[Engine] = import_module(f"{__name__}.{name}").ENGINE
    return kind


def open_engine(where: Where) -> Engine:
    """The engine that `where` asks for, with its model loaded.

    Raises UsageError before anything is loaded when `where` asks for what this engine cannot do. Raises FewstepError
    when the model cannot be loaded.
    """
    kind = engine_kind(where.engine)
    check_supported(kind.supports, where, where.engine)
    return kind.open(where)


def check_supported(supports: Capabilities, config: Config, name: str) -> None:
    """Raise UsageError when the config (a Where or a Draw) sets a field that the engine does not take."""
    fields = type(config).model_fields
    for field in sorted(OPTIONAL & fields.keys()):
        if field not in supports.fields and getattr(config, field) not in (fields[field].default, ()):
            raise UsageError(
                f"the {name} engine does not take {option_name(field)}", "leave it out, or use the engine torch"
            )
