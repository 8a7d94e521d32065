"""fewstep: turn any Stable Diffusion model into a 4-step generator.

The public door: `sample`, `distill`, `finetune` and `compare` each take their config, the same object the command line
builds. `accelerate` makes any diffusers pipeline a few-step one, with `FewstepScheduler` inside. Names are imported
when they are first used, so `import fewstep` is quick and imports no torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "sample": ("fewstep.session.session", "sample"),
    "Session": ("fewstep.session.session", "Session"),
    "Where": ("fewstep.configs", "Where"),
    "Draw": ("fewstep.configs", "Draw"),
    "distill": ("fewstep.training.distill", "run"),
    "finetune": ("fewstep.training.finetune", "run"),
    "compare": ("fewstep.evaluate.compare", "compare"),
    "accelerate": ("fewstep.bridge.accelerate", "accelerate"),
    "FewstepScheduler": ("fewstep.bridge.scheduler", "FewstepScheduler"),
    "SchedulerMixin": ("diffusers", "SchedulerMixin"),  # looked up here to load a pipeline saved with the one above
    "SampleConfig": ("fewstep.configs", "SampleConfig"),
    "DistillConfig": ("fewstep.configs", "DistillConfig"),
    "FinetuneConfig": ("fewstep.configs", "FinetuneConfig"),
    "CompareConfig": ("fewstep.configs", "CompareConfig"),
    "FewstepError": ("fewstep.errors", "FewstepError"),
}

__all__ = [
    "CompareConfig",
    "DistillConfig",
    "FewstepError",
    "FewstepScheduler",
    "FinetuneConfig",
    "SampleConfig",
    "accelerate",
    "compare",
    "distill",
    "finetune",
    "sample",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fewstep' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)
