"""Phased consistency distillation."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fewstep.configs import DistillConfig
from fewstep.diffusion.schedule import NoiseSchedule, skipping_grid
from fewstep.diffusion.solvers.ddim import jump_to
from fewstep.errors import UsageError, option
from fewstep.lora.recipe import Recipe
from fewstep.models.model import Model
from fewstep.training.adapt import Batch, usual_guidance
from fewstep.training.losses import Jump
from fewstep.training.methods.consistency import (
    Pair,
    check_model,
    check_teacher,
    distilled_recipe,
    distilling_players,
    guidance_range,
    level_at,
)
from fewstep.training.methods.method import CONSISTENCY, TEACHER, Method
from fewstep.training.networks import Networks
from fewstep.training.players import Player


@dataclass(frozen=True)
class PCM:
    """Phased consistency distillation: each of --phases parts of the way has its own jump to its end, and sampling adds
    no fresh noise (arXiv 2405.18407). With --guidance-scale 1, negative prompts and guidance work when sampling.
    """

    model: Model
    config: DistillConfig

    reads: ClassVar[frozenset[str]] = (CONSISTENCY - {"grid", "sampler"}) | TEACHER | {"phases"}
    with_teacher: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_model(self.model, self.config)
        check_phases(self.config.phases, self.config.k, len(self.model.schedule))

    @staticmethod
    def check(config: DistillConfig) -> None:
        check_teacher(config)

    def players(self, networks: Networks) -> dict[str, Player]:
        return distilling_players(networks, self.model, self.config, self.jump)

    def jump(self, pair: Pair, batch: Batch) -> Jump:
        """DDIM's step to the end of the phase that s is in: section 3.1's f, in eps.

        If t is that end, x stays exactly as it is, by a mask. So c_skip and c_out are not needed.
        """
        config, schedule = self.config, self.model.schedule
        ends = phase_ends(pair.ends + config.k, config.phases, config.k, schedule)
        return jump_to(level_at(schedule, ends).to(batch.x_0.device))

    def recipe(self, samples: int) -> Recipe:
        config, T = self.config, len(self.model.schedule)
        recipe = distilled_recipe(self.model, config, samples, "ddim")
        own = {"steps": config.phases, "edges": phase_edges(config.phases, config.k, T)}
        if guidance_range(config)[1] == 1:  # no guidance was distilled in, so the student needs the teacher's
            own["guidance_scale"] = usual_guidance(self.model)
        return recipe.model_copy(update=own)


def phase_length(phases: int, k: int, T: int) -> int:
    """The number of timesteps from one edge to the next."""
    return T // k // phases * k


def phase_edges(phases: int, k: int, T: int) -> tuple[int, ...]:
    """The timesteps at which the phases begin, descending. The last phase ends at the clean level."""
    length = phase_length(phases, k, T)
    return tuple(length * i - 1 for i in range(phases, 0, -1))


def phase_ends(starts: Tensor, phases: int, k: int, schedule: NoiseSchedule) -> Tensor:
    """The ends of the phases that contain the training grid's timesteps (B,). An edge is in the phase it begins."""
    length = phase_length(phases, k, len(schedule))
    return starts // length * length - 1


def check_phases(phases: int, k: int, T: int) -> None:
    """Raise UsageError for phases whose edges do not all lie on the training grid."""
    points = len(skipping_grid(k, T))
    if points % phases == 0:
        return
    counts = [n for n in range(1, points + 1) if points % n == 0]
    nearest = [*[n for n in counts if n < phases][-1:], *[n for n in counts if n > phases][:1]]
    grids = [n for n in range(1, T + 1) if T % n == 0 and T // n % phases == 0]
    other_k = [f"{option('k')} {n}" for n in sorted(grids, key=lambda n: abs(n - k))[:1]]
    raise UsageError(
        f"{option('phases')} {phases} does not divide the training grid, which has {points} timesteps at"
        f" {option('k')} {k}",
        "use " + ", or ".join([*other_k, f"{option('phases')} {' or '.join(map(str, nearest))}"]),
    )


METHODS: dict[str, type[Method]] = {"pcm": PCM}
