"""One frozen, typed config per command. The command line and the docs are generated from these classes.

Each field's docstring is its help; ranges are checked here, once, for every way in. Each file is imported when
something of it is first used: a command needs few of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_HOMES = {  # file: the names in it
    "bench": ("BenchConfig",),
    "base": (
        "METHOD_NAMES",
        "SPELLINGS",
        "Config",
        "Device",
        "Grid",
        "Modules",
        "Precision",
        "Solver",
        "Typed",
        "build",
        "option_name",
        "usage_error",
    ),
    "data": (
        "DataCheckConfig",
        "DataConfig",
        "DataEncodeConfig",
        "Filtering",
        "Selection",
    ),
    "draw": (
        "Draw",
        "Drawing",
        "DrawOptions",
        "draw_of",
    ),
    "drawing": (
        "CompareConfig",
        "DemoConfig",
        "SampleConfig",
        "TuneConfig",
    ),
    "elsewhere": ("answers",),
    "files": (
        "AdapterOutput",
        "DifferenceConfig",
        "DoctorConfig",
        "ExportConfig",
        "InspectConfig",
        "ListConfig",
        "MergeConfig",
        "ResizeConfig",
        "SumOutput",
    ),
    "help": ("describe",),
    "plan": ("PlanConfig",),
    "serving": ("ServeConfig",),
    "streaming": ("StreamConfig",),
    "training": (
        "AdapterConfig",
        "DiagnoseConfig",
        "DistillConfig",
        "FinetuneConfig",
        "ModelAndData",
        "TrainingConfig",
    ),
    "where": (
        "DType",
        "Loras",
        "Where",
        "WhereOptions",
    ),
}

if TYPE_CHECKING:
    from fewstep.configs.base import (
        METHOD_NAMES,
        SPELLINGS,
        Config,
        Device,
        Grid,
        Modules,
        Precision,
        Solver,
        Typed,
        build,
        option_name,
        usage_error,
    )
    from fewstep.configs.bench import BenchConfig
    from fewstep.configs.data import DataCheckConfig, DataConfig, DataEncodeConfig, Filtering, Selection
    from fewstep.configs.draw import Draw, Drawing, DrawOptions, draw_of
    from fewstep.configs.drawing import CompareConfig, DemoConfig, SampleConfig, TuneConfig
    from fewstep.configs.elsewhere import answers
    from fewstep.configs.files import (
        AdapterOutput,
        DifferenceConfig,
        DoctorConfig,
        ExportConfig,
        InspectConfig,
        ListConfig,
        MergeConfig,
        ResizeConfig,
        SumOutput,
    )
    from fewstep.configs.help import describe
    from fewstep.configs.plan import PlanConfig
    from fewstep.configs.serving import ServeConfig
    from fewstep.configs.streaming import StreamConfig
    from fewstep.configs.training import (
        AdapterConfig,
        DiagnoseConfig,
        DistillConfig,
        FinetuneConfig,
        ModelAndData,
        TrainingConfig,
    )
    from fewstep.configs.where import DType, Loras, Where, WhereOptions
else:

    def __getattr__(name: str) -> object:
        for module, names in _HOMES.items():
            if name in names:
                return getattr(import_module(f"{__name__}.{module}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "METHOD_NAMES",
    "SPELLINGS",
    "AdapterConfig",
    "AdapterOutput",
    "BenchConfig",
    "CompareConfig",
    "Config",
    "DType",
    "DataCheckConfig",
    "DataConfig",
    "DataEncodeConfig",
    "DemoConfig",
    "Device",
    "DiagnoseConfig",
    "DifferenceConfig",
    "DistillConfig",
    "DoctorConfig",
    "Draw",
    "DrawOptions",
    "Drawing",
    "ExportConfig",
    "Filtering",
    "FinetuneConfig",
    "Grid",
    "InspectConfig",
    "ListConfig",
    "Loras",
    "MergeConfig",
    "ModelAndData",
    "Modules",
    "PlanConfig",
    "Precision",
    "ResizeConfig",
    "SampleConfig",
    "Selection",
    "ServeConfig",
    "Solver",
    "StreamConfig",
    "SumOutput",
    "TrainingConfig",
    "TuneConfig",
    "Typed",
    "Where",
    "WhereOptions",
    "answers",
    "build",
    "describe",
    "draw_of",
    "option_name",
    "usage_error",
]
