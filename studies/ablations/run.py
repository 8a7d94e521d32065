"""Train, draw, measure, write the page."""

from fewstep.data.cache import encode
from fewstep.data.framing import Framing
from fewstep.data.sources import list_samples
from fewstep.errors import FewstepError, UsageError
from fewstep.io import write_bytes, write_json
from fewstep.models.load import load_model, pick_device
from studies.ablations.arms import Arm, arms
from studies.ablations.config import AblationsConfig
from studies.ablations.measures import measure
from studies.ablations.page import page
from studies.ablations.runs import Planned, runs_of
from studies.trainings import drawings, inputs, train


def run(config: AblationsConfig) -> None:
    """Train what is not trained, draw, measure, write the page."""
    chosen_arms = chosen(config)
    data = config.data or drawings()
    model, samples = load_model(config.model, device=pick_device(config.device)), list_samples(data).samples
    of = inputs(model, data)
    encode(samples, model, Framing(model.size, model.multiple))  # once, before several runs would all do it
    plan = [Planned(arm, runs_of(arm, config, data, of)) for arm in chosen_arms]
    del model
    train([run for seed in range(config.seeds) for _, runs in plan for run in runs[seed : seed + 1]], config.processes)
    whole = [planned for planned in plan if planned.finished]
    failed = [run for _, runs in plan for run in runs if not run.mark.is_file()]
    if plan[0] not in whole:
        raise FewstepError("a base run failed, which all others are compared to", f"see {failed[0].log}")
    document = measure(config, whole, len(samples))
    write_json(config.out.with_suffix(".json"), document)
    write_bytes(config.out, page(document).encode())
    if failed:
        names = ", ".join(run.name for run in failed)
        raise FewstepError(f"left out, because training failed: {names}", f"see {failed[0].log}, and run this again")
    print(config.out)


def chosen(config: AblationsConfig) -> tuple[Arm, ...]:
    """The base and the arms asked for."""
    every = arms(config.train_steps)
    names = [arm.name for arm in every]
    for name in config.arms:
        if name not in names:
            raise UsageError(f"unknown arm {name}", f"there are {'; '.join(names)}")
    return tuple(arm for arm in every if arm is every[0] or arm.name in (config.arms or names))
