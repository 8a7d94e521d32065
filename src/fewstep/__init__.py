"""fewstep: turn any Stable Diffusion model into a 4-step generator.

    Session, sample                      draw
    Client                               draw on a server, which `fewstep serve` starts
    distill, finetune, merge, compare    as the commands of these names: of their config, or of its fields
    accelerate, FewstepScheduler         in diffusers' pipelines
    Where, Draw, *Config                 what these take, as values
    FewstepError                         anything wrong with what was given: a message and a hint

Names are imported when they are first used: `import fewstep` is quick, imports no torch and changes nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {  # module: the public names in it
    "session": ("Picture", "PictureRecipe", "Session"),
    "session.session": ("sample",),
    "api": ("compare", "distill", "finetune", "merge"),
    "client": ("Client", "RemotePicture"),
    "bridge.accelerate": ("accelerate",),
    "bridge.scheduler": ("FewstepScheduler",),
    "configs": ("CompareConfig", "DistillConfig", "Draw", "FinetuneConfig", "MergeConfig", "SampleConfig", "Where"),
    "errors": ("FewstepError",),
    "events": ("Note", "Preview", "Progress"),
}

if TYPE_CHECKING:
    from fewstep.api import compare, distill, finetune, merge
    from fewstep.bridge.accelerate import accelerate
    from fewstep.bridge.scheduler import FewstepScheduler
    from fewstep.client import Client, RemotePicture
    from fewstep.configs import (
        CompareConfig,
        DistillConfig,
        Draw,
        FinetuneConfig,
        MergeConfig,
        SampleConfig,
        Where,
    )
    from fewstep.errors import FewstepError
    from fewstep.events import Note, Preview, Progress
    from fewstep.session import Picture, PictureRecipe, Session
    from fewstep.session.session import sample
else:

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})

    def __getattr__(name: str) -> object:
        if name == "SchedulerMixin":  # looked up here to load a pipeline that was saved with FewstepScheduler
            return import_module("diffusers").SchedulerMixin
        for module, names in _HOMES.items():
            if name in names:
                return getattr(import_module(f"fewstep.{module}"), name)
        raise AttributeError(f"module 'fewstep' has no attribute {name!r}")


__all__ = [
    "Client",
    "CompareConfig",
    "DistillConfig",
    "Draw",
    "FewstepError",
    "FewstepScheduler",
    "FinetuneConfig",
    "MergeConfig",
    "Note",
    "Picture",
    "PictureRecipe",
    "Preview",
    "Progress",
    "RemotePicture",
    "SampleConfig",
    "Session",
    "Where",
    "accelerate",
    "compare",
    "distill",
    "finetune",
    "merge",
    "sample",
]
