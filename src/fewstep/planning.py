"""Recipe and wishes in, solver, timesteps and guidance out: the one place every skin and trainer asks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fewstep.diffusion.schedule import NoiseSchedule, lcm_grid, leading_grid, linspace_grid, trailing_grid
from fewstep.diffusion.solvers import DDIM, SOLVERS, TCD, Solver
from fewstep.errors import UsageError
from fewstep.lora.recipe import Recipe

DEFAULT_STEPS = 20
DEFAULT_GUIDANCE_SCALE = 7.5
DEFAULT_K = 20
GRIDS = {"trailing": trailing_grid, "leading": leading_grid, "linspace": linspace_grid}
FOLLOWS_CONSISTENCY = {"lcm"}  # solvers that step with the consistency function
TRAINING_GRIDS = ("lcm", "quadratic")  # parts of the timesteps that a network was distilled at
DISTILLED_ONLY = {"lcm", "tcd"}  # solvers for distilled networks, sampled on the training grid
DIVIDES_BY_ALPHA = {"dpm-solver", "dpm-solver-3"}  # refused on zero-terminal-SNR schedules (trap 10)


@dataclass(frozen=True)
class Plan:
    """How images will be drawn."""

    solver_name: str
    timesteps: tuple[int, ...]  # descending; the clean end follows
    guidance_scale: float
    notes: tuple[str, ...] = ()  # one-line advice for the person
    grid: str = "trailing"  # that the timesteps are of: a name of GRIDS or TRAINING_GRIDS
    k: int = DEFAULT_K  # skipping step of the latter
    eta: float | None = None  # of ddim; None is the solver's own, 0
    gamma: float | None = None  # of tcd; None is the solver's own, 0.3

    @property
    def solver(self) -> Solver:
        """The solver itself."""
        return solver_named(self.solver_name, self.eta, self.gamma)

    @property
    def consistency(self) -> bool:
        """Whether the solver steps with the consistency function rather than the bare x_0 estimate."""
        return self.solver_name in FOLLOWS_CONSISTENCY

    @property
    def steps(self) -> int:
        """Network evaluations of one branch."""
        return len(self.timesteps) * self.solver.calls

    @property
    def nfe(self) -> int:
        """UNet rows per image."""
        return self.steps * (1 if self.guidance_scale == 1 else 2)


def plan_sampling(
    schedule: NoiseSchedule,
    recipes: Sequence[Recipe],
    solver: str = "auto",
    steps: int | None = None,
    guidance_scale: float | None = None,
    strength: float = 1.0,
    negative_prompt: bool = False,
    grid: str = "auto",
    eta: float | None = None,
    gamma: float | None = None,
) -> Plan:
    """The plan for sampling with models and LoRAs of these recipes; None and auto follow them.

    grid: auto is that of an acceleration that was trained on one, lcm if it names none, else trailing.
    eta, gamma: how much noise ddim and tcd replace by fresh one, in [0, 1]; the others have none to choose.
    strength: of image-to-image, in (0, 1]: the grid is laid on [0, strength * T], so the steps stay as asked.
    Raises UsageError for what cannot be.
    """
    fast = next((recipe for recipe in recipes if recipe.accelerates), None)
    name = (fast.solver if fast else "dpm-solver++") if solver == "auto" else solver
    if steps is None:
        steps = (fast and fast.steps) or DEFAULT_STEPS
    if guidance_scale is None:
        recommended = (recipe.guidance_scale for recipe in ([fast] if fast else recipes))
        guidance_scale = next((scale for scale in recommended if scale is not None), DEFAULT_GUIDANCE_SCALE)
    refuse_zero_snr(name, schedule)
    if grid == "auto" and fast is not None and (fast.grid or fast.k is not None):
        grid = fast.grid or "lcm"
    grid, k = grid_named(grid, name), (fast and fast.k) or DEFAULT_K
    timesteps = lay_timesteps(name, steps, grid, k, len(schedule), strength)
    notes = _notes(name, fast, steps, guidance_scale, negative_prompt)
    fresh = (_fresh_noise("eta", "ddim", eta, name, fast), _fresh_noise("gamma", "tcd", gamma, name, fast))
    return Plan(name, tuple(timesteps), guidance_scale, tuple(notes), grid, k, *fresh)


def solver_named(name: str, eta: float | None = None, gamma: float | None = None) -> Solver:
    """The solver of that name; eta and gamma, of ddim and tcd, None for its own. UsageError for an unknown one."""
    if name not in SOLVERS:
        raise UsageError(f"unknown solver {name!r}", f"known ones: {', '.join(SOLVERS)}")
    if name == "ddim" and eta is not None:
        return DDIM(eta)
    return TCD(gamma) if name == "tcd" and gamma is not None else SOLVERS[name]


def grid_named(grid: str, solver: str) -> str:
    """A name of GRIDS or TRAINING_GRIDS; of auto, lcm for the solvers of distilled networks, else trailing."""
    if grid == "auto":
        return "lcm" if solver in DISTILLED_ONLY else "trailing"
    if grid not in (*TRAINING_GRIDS, *GRIDS):
        raise UsageError(f"unknown grid {grid!r}", f"known ones: auto, {', '.join((*TRAINING_GRIDS, *GRIDS))}")
    return grid


def lay_timesteps(solver: str, steps: int, grid: str, k: int, T: int, strength: float = 1.0) -> list[int]:
    """The timesteps, descending, at which the steps of a solver begin: `steps` network evaluations in all.

    strength: of image-to-image, in (0, 1]: the grid is laid on [0, strength * T], so the steps stay as asked.
    """
    count = _solver_steps(solver, steps)
    if not 0 < strength <= 1:
        raise UsageError(
            f"strength {strength:g} is outside 0 to 1", "0.6 keeps the picture's layout; 1 forgets the picture"
        )
    reach = max(math.ceil(strength * T), count)
    if grid in TRAINING_GRIDS:
        return lcm_grid(count, k, reach, grid == "quadratic")
    return GRIDS[grid](count, reach)


def _fresh_noise(option: str, of: str, wish: float | None, name: str, fast: Recipe | None) -> float | None:
    """The wish, else the recipe's if its solver is used; UsageError for a wish where the solver is not `of`."""
    if name == of:
        own = getattr(fast, option) if fast and fast.solver == name else None
        return own if wish is None else wish
    if wish is not None:
        raise UsageError(f"--{option} is of the {of} solver, and the solver is {name}", f"add --solver {of}")
    return None


def _solver_steps(name: str, steps: int) -> int:
    """Solver steps for `steps` network evaluations."""
    calls = solver_named(name).calls
    if steps < 1 or steps % calls:
        raise UsageError(
            f"{name} makes {calls} network calls a step, so --steps {steps} does not come out even",
            f"use a multiple of {calls}",
        )
    if steps > 1000:
        raise UsageError(f"--steps {steps} is outside 1 to 1000", "4 is usual with an acceleration LoRA, 20 without")
    return steps // calls


def _notes(name: str, fast: Recipe | None, steps: int, guidance_scale: float, negative_prompt: bool) -> list[str]:
    notes = []
    if fast and fast.recognised_by:
        notes.append(
            f"a LoRA carries no recipe; by '{fast.recognised_by}' in its name it is made for {fast.solver},"
            f" {fast.steps} steps, guidance {fast.guidance_scale:g}: --solver, --steps and --guidance-scale overrule it"
        )
    if fast and fast.caveat:
        notes.append(f"pictures will differ from its makers': {fast.caveat}")
    if fast and (fast.guidance_scale or 1) <= 2 < guidance_scale:
        notes.append(
            f"guidance {guidance_scale:g} burns with an acceleration LoRA, which has guidance in it: use 1 to 2"
        )
    if fast and steps > max(8, fast.steps or 1):
        notes.append(f"{steps} steps: an acceleration LoRA gains nothing past 8")
    if fast and fast.solver not in ("auto", name):
        notes.append(f"this LoRA was made for the {fast.solver} solver, and {name} was asked for")
    if not fast and name in DISTILLED_ONLY:
        notes.append(
            f"the {name} solver needs an acceleration LoRA or a distilled model; without one images are blurry"
        )
    if negative_prompt and guidance_scale == 1:
        notes.append("the negative prompt has no effect at guidance 1: --nag-scale 5 makes it work")
    return notes


def psi_named(name: str) -> Solver:
    """The ODE solver that steps the teacher in distillation, by a name of SOLVERS; dpm-solver++ means 2S.

    Raises UsageError for multistep, noisy and unknown solvers.
    """
    solver = SOLVERS.get("dpm-solver++2s" if name == "dpm-solver++" else name)
    if name == "dpm-solver++2m" or (solver and (solver.multistep or solver.order == 0)):
        reason = "adds noise" if solver and solver.order == 0 else "is multistep: without history it is only DDIM"
        raise UsageError(f"--psi {name} {reason}", "use ddim, dpm-solver or dpm-solver++ (single-step)")
    if solver is None:
        raise UsageError(f"unknown --psi {name!r}", "use ddim, dpm-solver or dpm-solver++")
    return solver


def refuse_zero_snr(name: str, schedule: NoiseSchedule) -> None:
    """Raise UsageError for the solvers that divide by alpha on a schedule that begins at pure noise (trap 10)."""
    if name in DIVIDES_BY_ALPHA and schedule.zero_terminal_snr:
        raise UsageError(f"{name} divides by alpha, which is 0 where this model starts", "use dpm-solver++ instead")
