"""The counterparts of our solvers in diffusers: schedulers, with which other programs sample a folder correctly."""

import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import diffusers

from fewstep.diffusion.schedule import SCHEDULE_KEYS
from fewstep.errors import FewstepError
from fewstep.io import read_json, write_json

CONFIG = "scheduler_config.json"
NO_JSON = -math.inf  # diffusers' default of lambda_min_clipped, which it writes as -Infinity
PIPELINES = ("StableDiffusionPipeline", "LatentConsistencyModelPipeline")  # of the same parts


class Stepping(NamedTuple):
    """The counterpart of a solver in diffusers."""

    name: str  # the scheduler's class
    config: Mapping[str, Any]
    call: Mapping[str, Any] = {}  # arguments for calls of the pipeline, besides steps and guidance


STEPPINGS = {  # tests compare each with our solver
    "lcm": Stepping("LCMScheduler", {"timestep_scaling": 10.0}),
    "tcd": Stepping("TCDScheduler", {}, {"eta": 0.3}),  # the pipeline's own eta is 0, which adds no noise
    "ddim": Stepping("DDIMScheduler", {"timestep_spacing": "trailing", "set_alpha_to_one": True}),
    "dpm-solver++": Stepping(
        "DPMSolverMultistepScheduler",
        {
            "algorithm_type": "dpmsolver++",
            "solver_order": 2,
            "solver_type": "midpoint",
            "final_sigmas_type": "zero",
            "timestep_spacing": "trailing",
        },
    ),
}


def scheduler_of(
    source: Path, prediction_type: str, solver: str, timesteps: Sequence[int], points: int
) -> tuple[Stepping, Any]:
    """The solver's counterpart in diffusers, and its scheduler, which makes exactly these timesteps.

    A scheduler that takes timesteps gets them in the call. Raises FewstepError for a solver without a counterpart, and
    for timesteps that the scheduler does not make.

    source: the model's folder, whose scheduler has the noise schedule. points: timesteps of the training grid.
    """
    stepping = STEPPINGS.get(solver)
    if stepping is None:
        raise FewstepError(
            f"the {solver} solver of this model's recipe has no counterpart among diffusers' schedulers",
            f"solvers that can be exported: {', '.join(STEPPINGS)}",
        )
    kind = getattr(diffusers, stepping.name)
    known = inspect.signature(kind.__init__).parameters
    stored = read_json(source / "scheduler" / CONFIG, "scheduler config")
    config = {name: stored[name] for name in SCHEDULE_KEYS if name in stored and name in known}
    config |= {"prediction_type": prediction_type, "clip_sample": False, **stepping.config}
    config["steps_offset"] = 1  # our grids do not use it, and the pipeline warns about other values
    if "original_inference_steps" in known:
        config["original_inference_steps"] = points
    scheduler = kind(**{name: value for name, value in config.items() if name in known})  # some lack clip_sample
    scheduler.set_timesteps(len(timesteps))
    if scheduler.timesteps.tolist() == list(timesteps):
        return stepping, scheduler
    if "timesteps" not in inspect.signature(kind.set_timesteps).parameters:
        raise FewstepError(
            f"diffusers' {stepping.name} steps at {scheduler.timesteps.tolist()}, but this model needs"
            f" {list(timesteps)}",
            "sample this model with fewstep",
        )
    return stepping._replace(call={**stepping.call, "timesteps": list(timesteps)}), scheduler


def write_scheduler(folder: Path, scheduler: Any, embeds_guidance: bool) -> None:
    """Write the scheduler to the model folder.

    embeds_guidance: whether the network takes guidance as an input. With LCM's scheduler the folder then becomes one of
    LatentConsistencyModelPipeline, which needs that scheduler.
    """
    index = read_json(folder / "model_index.json", "model index")
    name = type(scheduler).__name__
    if embeds_guidance and index["_class_name"] in PIPELINES:
        index["_class_name"] = PIPELINES[name == "LCMScheduler"]
    write_json(folder / "model_index.json", index | {"scheduler": ["diffusers", name]})
    scheduler.save_pretrained(folder / "scheduler")
    file = folder / "scheduler" / CONFIG
    config = read_json(file, "scheduler config")
    write_json(file, {key: value for key, value in config.items() if value != NO_JSON})
