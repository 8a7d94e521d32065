"""Engines: what runs a model's networks. Each is one file in this folder, called as people type it, with an ENGINE."""

from importlib import import_module
from pkgutil import iter_modules

from fewstep.configs import Where
from fewstep.engines.engine import Capabilities, Engine, Facts, NetworkOptions
from fewstep.errors import UsageError

DEFAULT = "torch"

__all__ = ["Capabilities", "Engine", "Facts", "NetworkOptions", "engine_kind", "engine_names", "open_engine"]


def engine_names() -> list[str]:
    """The engines there are; none is imported."""
    return [file.name for file in iter_modules(__path__) if file.name != "engine"]


def engine_kind(name: str) -> type[Engine]:
    """The engine of that name, auto being the default one. Raises UsageError for an unknown name."""
    name = DEFAULT if name == "auto" else name
    if name not in engine_names():
        raise UsageError(f"unknown engine {name!r}", f"known ones: auto, {', '.join(engine_names())}")
    kind: type[Engine] = import_module(f"{__name__}.{name}").ENGINE
    return kind


def open_engine(where: Where) -> Engine:
    """The engine that `where` asks for, with its model loaded. Raises FewstepError for what cannot be loaded."""
    return engine_kind(where.engine).open(where)
