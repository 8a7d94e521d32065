"""The arms' trainings."""

from pathlib import Path
from typing import NamedTuple

from fewstep.configs import DistillConfig, build
from fewstep.io import cache_dir
from studies.ablations.arms import BASE, Arm
from studies.ablations.config import AblationsConfig
from studies.trainings import Run, placed


def run_of(arm: Arm, seed: int, config: AblationsConfig, data: Path, of: str) -> Run:
    """The arm's training from that seed. of: hash of the model and the data."""
    steps = arm.changes.get("train_steps", config.train_steps)
    options = {"train_steps": steps, "batch_size": config.batch_size, "warmup": steps // 15} | BASE | arm.changes
    options |= {"precision": config.precision, "device": config.device, "checkpoint_every": 50, "resume": True}
    described = build(DistillConfig, model=config.model, data=data, out=cache_dir() / "ablations", **options, seed=seed)
    return Run(f"{arm.name}, seed {seed}", placed(described, of))


def runs_of(arm: Arm, config: AblationsConfig, data: Path, of: str) -> tuple[Run, ...]:
    """The arm's trainings, by seed."""
    return tuple(run_of(arm, seed, config, data, of) for seed in range(config.seeds))


class Planned(NamedTuple):
    """An arm and its trainings."""

    arm: Arm
    runs: tuple[Run, ...]  # by seed

    @property
    def finished(self) -> bool:
        """Whether all of them are."""
        return all(run.mark.is_file() for run in self.runs)
