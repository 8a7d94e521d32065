"""fewstep's solvers, grids and consistency function as a scheduler for any diffusers pipeline."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from diffusers import SchedulerMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fewstep.diffusion.consistency import consistency
from fewstep.diffusion.prediction import V, prediction_named, refuse_blind
from fewstep.diffusion.sampler import sampling_levels
from fewstep.diffusion.schedule import NoiseLevel, schedule_from_config
from fewstep.diffusion.solvers import DDIM
from fewstep.diffusion.solvers.base import Levels, State, Step, run_step
from fewstep.errors import UsageError
from fewstep.events import note
from fewstep.session.plan import (
    between_trained,
    grid_named,
    lay_timesteps,
    reachable_grid,
    refuse_zero_snr,
    solver_named,
)

Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass
class FewstepSchedulerOutput(BaseOutput):  # type: ignore[misc]
    """The result of a step."""

    prev_sample: Tensor  # the next input of the network, (B, C, H, W); after the last step, the clean latents
    pred_original_sample: Tensor | None = None  # the estimate of x_0 that the step used


class FewstepScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A solver of fewstep as a diffusers scheduler: the pipeline evaluates the network, `step` does the rest.

    `num_inference_steps` counts network evaluations of one branch, like fewstep's steps. A solver with several
    evaluations a step has a timestep for each; those at its inner levels are fractional. The solver's step waits for
    each evaluation until the pipeline brings it. So the same code steps here and in `fewstep sample`.

    In an image-to-image pipeline diffusers runs `num_inference_steps * strength` of the steps; with 4 steps and a
    strength below 0.25, none. `fewstep.accelerate` places all the steps inside strength's range instead.
    """

    _compatibles: ClassVar[list[str]] = [
        *(kind.name for kind in KarrasDiffusionSchedulers),
        "LCMScheduler",
        "TCDScheduler",
    ]
    order: ClassVar[int] = 1  # timesteps per inference step
    init_noise_sigma: ClassVar[float] = 1.0

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        prediction_type: str = "epsilon",
        solver: str = "dpm-solver++",
        grid: str = "auto",
        k: int = 20,
        eta: float | None = None,
        gamma: float | None = None,
    ) -> None:
        """The first seven arguments describe the model, as in every diffusers scheduler.

        solver: a name of fewstep's solvers. grid: auto, lcm, quadratic, trailing, leading or linspace; auto is lcm
        for lcm and tcd, and trailing for other solvers. k: skipping step of the training grid, from which lcm and
        quadratic choose. eta: of ddim, gamma: of tcd, in [0, 1]; None = the solver's default.
        """
        self.schedule = schedule_from_config(self.config)
        bar = self.schedule.alpha_bar
        self.alphas_cumprod = bar.float()  # (T,), diffusers' name for alpha_bar
        self.betas = (1 - bar / torch.cat([bar.new_ones(1), bar[:-1]])).float()  # (T,)
        self.prediction = prediction_named(prediction_type)
        self.solver = solver_named(solver, eta, gamma)
        self.grid = grid_named(grid, solver)
        refuse_zero_snr(solver, self.schedule)
        refuse_blind(prediction_type, self.schedule.zero_terminal_snr)
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(len(self.schedule) - 1, -1, -1)
        self.custom_timesteps = False  # whether the caller set the timesteps
        self.begin_index: int | None = None
        self.step_index: int | None = None  # number of network evaluations so far
        self._steps: list[Levels] = []  # levels of every step of the solver
        self._restart()

    def __len__(self) -> int:
        return len(self.schedule)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_step": None, "_answers": 0}  # a copy made in the middle of a step goes on at first order

    def _restart(self) -> None:
        self._state: State = None
        self._step: Step | None = None  # the solver's step while it waits for an answer
        self._answers = 0  # answers that this step has had

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        original_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        strength: float = 1.0,
    ) -> None:
        """Set the timesteps of `num_inference_steps` network evaluations.

        original_inference_steps: number of points of the lcm grid, instead of k, as in diffusers' LCMScheduler.
        timesteps: beginnings of the solver's steps, descending, instead of a grid. strength: all lie in
        [0, strength * T].
        """
        T = len(self.schedule)
        self.custom_timesteps = timesteps is not None
        if timesteps is None:
            if num_inference_steps is None:
                raise UsageError("neither num_inference_steps nor timesteps is given", "4 steps are usual with an LCM")
            k = T // original_inference_steps if original_inference_steps else self.config.k
            wish = (self.config.solver, num_inference_steps)
            grid = reachable_grid(*wish, self.grid, k, T, strength)
            if grid != self.grid:
                note(between_trained(strength, k))
            timesteps = lay_timesteps(*wish, grid, k, T, strength)
        self.lay(timesteps, device)

    def lay(self, timesteps: Sequence[int], device: torch.device | str | None = None) -> None:
        """Set the beginnings of the solver's steps, and start at the first. The last step ends at the clean level."""
        starts, T = [int(t) for t in timesteps], len(self.schedule)
        if not starts or not 0 <= min(starts) <= max(starts) < T:
            raise UsageError(f"timesteps {starts} are not all inside 0 to {T - 1}", "list them from high to low")
        levels = sampling_levels(self.schedule, starts)
        steps = [self.solver.levels(self.schedule, s, t) for s, t in pairwise(levels)]
        stops = torch.cat([level.t for step in steps for level in step[: self.solver.calls]])
        self._steps = [tuple(level.to(device or "cpu") for level in step) for step in steps]
        self.timesteps = (stops.long() if bool((stops == stops.floor()).all()) else stops).to(device or "cpu")
        self.num_inference_steps = len(self.timesteps)
        self.begin_index = self.step_index = None
        self._restart()

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at the timestep with this index, instead of the one in the first call of `step`."""
        self.begin_index = begin_index

    def index_for_timestep(self, timestep: Tensor | float) -> int:
        """The index of the timestep in `timesteps`; of several, the first one at which a solver's step begins."""
        found = [i for i, t in enumerate(self.timesteps.tolist()) if t == float(timestep)]
        if not found:
            raise ValueError(f"timestep {float(timestep):g} is not one of {self.timesteps.tolist()}")
        return min(found, key=lambda i: (i % self.solver.calls > 0, i))

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        """The sample, unchanged."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """The next sample, from the network's output at this sample (B, C, H, W), as FewstepSchedulerOutput or a tuple.

        generator: for the noise; one, or one per image, as pipelines pass them.
        """
        if self.num_inference_steps is None:
            raise ValueError("call set_timesteps before step")
        if self.step_index is None:
            begin = self.begin_index
            self.step_index = self.index_for_timestep(timestep) if begin is None else begin
        x = sample.float()
        x_0, reached = self._advance(model_output.float(), x, PipelineNoise(x, generator))
        self.step_index += 1
        fields = (reached.to(sample.dtype), x_0.to(sample.dtype))
        return FewstepSchedulerOutput(*fields) if return_dict else fields

    def _advance(self, output: Tensor, x: Tensor, noise: "PipelineNoise") -> tuple[Tensor, Tensor]:
        """The estimate of x_0 at x, and the next input of the network."""
        assert self.step_index is not None
        number, call = divmod(self.step_index, self.solver.calls)
        levels = tuple(level.to(x.device) for level in self._steps[number])
        x_0 = self._estimate(output, x, levels[call])
        if call != self._answers:  # the pipeline began in the middle of a step: go to the next level at first order
            x_t, _ = run_step(DDIM().step(x, levels[call : call + 2], None, None), lambda x_t, level: x_0)
            return x_0, x_t
        if self._step is None:
            self._step = self.solver.step(x, levels, self._state, noise)
            next(self._step)
        try:
            ask = self._step.send(x_0)
        except StopIteration as end:
            x_t, self._state = end.value
            self._step, self._answers = None, 0
            return x_0, x_t
        self._answers += 1
        return x_0, ask.x

    def _estimate(self, output: Tensor, x: Tensor, level: NoiseLevel) -> Tensor:
        x_0 = self.prediction.to_x_0(output, x, level)
        if not self.solver.follows_consistency:
            return x_0
        return consistency(lambda x_t, level: x_0, x, level)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x_0 + sigma eps at timesteps (B,), which may be fractional."""
        level = self._levels_like(original_samples, timesteps)
        noised: Tensor = level.alpha * original_samples.float() + level.sigma * noise.float()
        return noised.to(original_samples.dtype)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """v = alpha eps - sigma x_0 at timesteps (B,)."""
        velocity = V().aim(sample.float(), noise.float(), self._levels_like(sample, timesteps))
        return velocity.to(sample.dtype)

    def _levels_like(self, x: Tensor, timesteps: Tensor) -> NoiseLevel:
        """Levels that broadcast over x (B, ...)."""
        t, *scales = self.schedule.at(timesteps.to(x.device))
        return NoiseLevel(t, *(scale.view(-1, *(1,) * (x.ndim - 1)) for scale in scales))


@dataclass(frozen=True)
class PipelineNoise:
    """Draws standard normal noise in float32, of x's shape and on its device, as diffusers does."""

    x: Tensor
    generator: Generators

    def __call__(self) -> Tensor:
        one = self.generator if isinstance(self.generator, torch.Generator | None) else list(self.generator)
        noise: Tensor = randn_tensor(self.x.shape, generator=one, device=self.x.device, dtype=torch.float32)
        return noise
