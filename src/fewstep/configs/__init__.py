"""One frozen, typed config per command. The command line and the docs are generated from these classes.

Each field's docstring is its help; ranges are checked here, once, for every way in.
"""

from fewstep.configs.base import (
    SPELLINGS,
    Config,
    Device,
    Grid,
    Modules,
    Precision,
    Solver,
    build,
    option_name,
    usage_error,
)
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
    MergeConfig,
    ResizeConfig,
    SumOutput,
)
from fewstep.configs.training import (
    AdapterConfig,
    DistillConfig,
    FinetuneConfig,
    Source,
    TrainingConfig,
)

__all__ = [
    "SPELLINGS",
    "AdapterConfig",
    "AdapterOutput",
    "CompareConfig",
    "Config",
    "DemoConfig",
    "Device",
    "DifferenceConfig",
    "DistillConfig",
    "DoctorConfig",
    "ExportConfig",
    "FinetuneConfig",
    "Grid",
    "InspectConfig",
    "MergeConfig",
    "Modules",
    "Precision",
    "ResizeConfig",
    "SampleConfig",
    "Solver",
    "Source",
    "SumOutput",
    "TrainingConfig",
    "TuneConfig",
    "answers",
    "build",
    "option_name",
    "usage_error",
]
