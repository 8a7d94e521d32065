"""Whether a run may go on from another's checkpoint: which options differ, and where the checkpoint is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.configs import TrainingConfig
from fewstep.data.cache.processes import this_process
from fewstep.errors import UsageError, option
from fewstep.io import is_file
from fewstep.training.checkpoint import FOLDER, newest_checkpoint

PROCESSES = "processes"  # in a stored config: of how many the run is


def check_same(config: TrainingConfig, values: Mapping[str, Any], before: Mapping[str, Any], run: Path) -> None:
    """Raise UsageError naming all options that differ from those of the run in the folder `run`.

    values, before: the config of this run and of that one, as stored.
    """
    fixed = sorted(values.keys() - config.may_change - {PROCESSES})
    differing = [name for name in fixed if name in before and before[name] != values[name]]
    hint = f"resume with the options of the first run, or choose another {option('out')}"
    if differing:
        typed = ", ".join(f"{option(name)} {getattr(config, name)}" for name in differing)
        held = ", ".join(str(before[name]) for name in differing)
        verb = "differs" if len(differing) == 1 else "differ"
        raise UsageError(f"{typed} {verb} from the run in {run} ({held})", hint)
    now, then = samples_a_step(values), samples_a_step(before)
    if now != then:
        parts = f"{option('batch_size')} {config.batch_size} x {option('accumulate')} {config.accumulate}"
        raise UsageError(
            f"{parts} x {processes(values)} process{'es' * (processes(values) != 1)} is {now} samples a step, but the"
            f" run in {run} has {then}",
            "the three may differ from the first run's, but not their product",
        )


def processes(values: Mapping[str, Any]) -> int:
    """Of how many processes a run with this stored config is, or this one if it does not say."""
    return int(values.get(PROCESSES, this_process().of))


def samples_a_step(values: Mapping[str, Any]) -> int:
    """How many samples a step of a run with this stored config takes, of all processes."""
    return int(values["batch_size"]) * int(values["accumulate"]) * processes(values)


def named_checkpoint(config: TrainingConfig) -> Path | None:
    """The checkpoint of --resume-from; None without the option. Raises UsageError if there is none."""
    given = config.resume_from
    if given is None or is_file(given):
        return given
    found = newest_checkpoint(given / FOLDER) or newest_checkpoint(given)
    if found is None:
        raise UsageError(f"{option('resume_from')} {given}: no checkpoint is there", "name a run's folder, or its file")
    return found


def run_of(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint is of."""
    return checkpoint.parent.parent if checkpoint.parent.name == FOLDER else checkpoint.parent
