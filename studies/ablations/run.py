"""Train, draw, measure, write the page."""

from fewstep.data.cache import encode
from fewstep.data.sources import list_samples
from fewstep.errors import FewstepError, UsageError
from fewstep.io import sha256_file, write_bytes, write_json
from fewstep.models.load import load_model, pick_device
from fewstep.models.model import parts_sha256
from studies.ablations.config import AblationsConfig
from studies.ablations.groups import Group, all_groups
from studies.ablations.measures import measure
from studies.ablations.page import page
from studies.ablations.runs import drawings, runs_of, train


def run(config: AblationsConfig) -> None:
    """Train what is not trained, draw, measure, write the page."""
    groups = chosen(config)
    data = config.data or drawings()
    model, samples = load_model(config.model, device=pick_device(config.device)), list_samples(data).samples
    of = f"{parts_sha256(model.path)} {sha256_file(data) if data.is_file() else data}"
    encode(samples, model, model.size)  # once, before several runs would all do it
    plan = {name: runs_of(name, group, config, data, of) for name, group in groups.items()}
    del model
    runs = {run.config.out: run for of_group in plan.values() for run in of_group.values()}
    train(list(runs.values()), config.processes)
    failed = [run for run in runs.values() if not run.mark.is_file()]
    base = next(iter(next(iter(plan.values())).values()))
    if base in failed:
        raise FewstepError("the base run failed, which all others are compared to", f"see {base.log}")
    document = measure(config, groups, plan, len(samples))
    write_bytes(config.out, page(document).encode())
    write_json(config.out.with_suffix(".json"), document)
    if failed:
        names = ", ".join(run.name for run in failed)
        raise FewstepError(f"left out, because training failed: {names}", f"see {failed[0].log}, and run this again")
    print(config.out)


def chosen(config: AblationsConfig) -> dict[str, Group]:
    """The groups asked for."""
    groups = all_groups(config.train_steps, config.long)
    for name in config.groups:
        if name not in groups:
            raise UsageError(f"unknown group {name}", f"there are {', '.join(groups)}")
    return {name: group for name, group in groups.items() if name in (config.groups or groups)}
