"""One frozen, typed config per command. The command line and the docs are generated from these classes.

Each field's docstring is its help; ranges are checked here, once, for every way in.
"""

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
from fewstep.configs.draw import Draw, Drawing, DrawOptions, draw_of
from fewstep.configs.drawing import (
    CompareConfig,
    DemoConfig,
    SampleConfig,
    TuneConfig,
)
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
from fewstep.configs.training import (
    AdapterConfig,
    DistillConfig,
    FinetuneConfig,
    ModelAndData,
    TrainingConfig,
)
from fewstep.configs.where import DType, Loras, Where

__all__ = [
    "METHOD_NAMES",
    "SPELLINGS",
    "AdapterConfig",
    "AdapterOutput",
    "CompareConfig",
    "Config",
    "DType",
    "DemoConfig",
    "Device",
    "DifferenceConfig",
    "DistillConfig",
    "DoctorConfig",
    "Draw",
    "DrawOptions",
    "Drawing",
    "ExportConfig",
    "FinetuneConfig",
    "Grid",
    "InspectConfig",
    "ListConfig",
    "Loras",
    "MergeConfig",
    "ModelAndData",
    "Modules",
    "Precision",
    "ResizeConfig",
    "SampleConfig",
    "Solver",
    "SumOutput",
    "TrainingConfig",
    "TuneConfig",
    "Typed",
    "Where",
    "answers",
    "build",
    "draw_of",
    "option_name",
    "usage_error",
]
