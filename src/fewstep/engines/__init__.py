"""Engines run a model's networks. Each is a file in this folder, named as people type it, that defines ENGINE."""

from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules

from fewstep.configs import Config, Where, option_name
from fewstep.engines.engine import OPTIONAL, Capabilities, Engine, Facts, NetworkOptions
from fewstep.errors import FewstepError, UsageError
from fewstep.models.exported import exported_for
from fewstep.models.load import pick_device, takes_text
from fewstep.models.weights import model_path

DEFAULT = "torch"  # it runs everything, everywhere, and changes LoRAs at once
ON_CPU = "openvino"  # the fastest on a CPU

__all__ = [
    "Capabilities",
    "Engine",
    "Facts",
    "NetworkOptions",
    "check_supported",
    "chosen",
    "engine_kind",
    "engine_names",
    "for_changing_loras",
    "kind_for",
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


def chosen(where: Where) -> str:
    """The engine that `where` names. For auto, the fastest one that is installed and runs what `where` asks for.

    An exported folder has one engine. Otherwise auto is openvino on a CPU, and torch on a GPU or where openvino is not
    installed or lacks something.
    """
    if where.engine != "auto":
        return where.engine
    return exported_for(where.model) or (ON_CPU if suits_openvino(where) else DEFAULT)


def suits_openvino(where: Where) -> bool:
    """Whether openvino is installed, would run on a CPU, and has all that `where` asks for."""
    if find_spec(ON_CPU) is None or where.device not in ("auto", "cpu") or pick_device(where.device).type != "cpu":
        return False
    try:
        openvino = import_module(f"{__name__}.{ON_CPU}")
        check_supported(openvino.ENGINE.supports, where, ON_CPU)
        openvino.ENGINE.start(where)
    except FewstepError:
        return False
    return takes_text(str(model_path(where.model)))


def for_changing_loras(name: str) -> str:
    """The engine for work that changes LoRAs all the time: auto is one that does not build anew for it."""
    return DEFAULT if name == "auto" else name


def open_engine(where: Where) -> Engine:
    """The engine that `where` asks for, with its model loaded.

    Raises as `kind_for`, before anything is loaded, and FewstepError when the model cannot be loaded.
    """
    return kind_for(where).open(where)


def kind_for(where: Where) -> type[Engine]:
    """The engine that `where` asks for. Raises UsageError when it asks for what this engine cannot do."""
    name = chosen(where)
    kind = engine_kind(name)
    check_supported(kind.supports, where, name)
    return kind


def check_supported(supports: Capabilities, config: Config, name: str) -> None:
    """Raise UsageError when the config (a Where or a Draw) sets a field that the engine does not take."""
    fields = type(config).model_fields
    if getattr(config, "dtype", None) == "int8" and not supports.int8:
        raise UsageError(
            f"the {name} engine does not compute in {option_name('dtype')} int8",
            f'use {option_name("engine")} openvino, and pip install "fewstep[int8]"',
        )
    for field in sorted(OPTIONAL & fields.keys()):
        if field not in supports.fields and getattr(config, field) not in (fields[field].default, ()):
            raise UsageError(
                f"the {name} engine does not take {option_name(field)}", "leave it out, or use the engine torch"
            )
