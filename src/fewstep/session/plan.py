"""Makes the plan (solver, timesteps, guidance) from recipes and requested options, for all commands and training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fewstep.configs import Draw
from fewstep.diffusion.schedule import (
    NoiseSchedule,
    lcm_grid,
    leading_grid,
    linspace_grid,
    skipping_grid,
    trailing_grid,
)
from fewstep.diffusion.solvers import SOLVERS, Solver
from fewstep.errors import Line, UsageError, number_of, option
from fewstep.lora.recipe import Recipe

DEFAULT_STEPS = 20
DEFAULT_GUIDANCE_SCALE = 7.5
DEFAULT_K = 20
GRIDS = {"trailing": trailing_grid, "leading": leading_grid, "linspace": linspace_grid}
TRAINING_GRIDS = ("lcm", "quadratic")  # subsets of the timesteps that a network was distilled at


@dataclass(frozen=True)
class Plan:
    """The solver, timesteps and guidance for drawing pictures."""

    solver_name: str
    timesteps: tuple[int, ...]  # descending; the clean end follows
    guidance_scale: float
    notes: tuple[Line, ...] = ()  # advice for the user, one line each
    grid: str = "trailing"  # grid of the timesteps: a name of GRIDS or TRAINING_GRIDS
    k: int = DEFAULT_K  # skipping step of the grids in TRAINING_GRIDS
    eta: float | None = None  # of ddim; None = the solver's default, 0
    gamma: float | None = None  # of tcd; None = the solver's default, 0.3
    embeds_guidance: bool = False  # the network takes guidance as an input, so guidance adds no rows

    @property
    def solver(self) -> Solver:
        """The solver itself."""
        return solver_named(self.solver_name, self.eta, self.gamma)

    @property
    def consistency(self) -> bool:
        """Whether the solver uses the consistency function instead of the bare estimate of x_0."""
        return self.solver.follows_consistency

    @property
    def steps(self) -> int:
        """Network evaluations of one branch."""
        return len(self.timesteps) * self.solver.calls

    @property
    def nfe(self) -> int:
        """UNet rows per image."""
        return self.steps * (2 if self.guided else 1)

    @property
    def guided(self) -> bool:
        """Whether guidance takes a second branch of the network, of the empty or negative prompt."""
        return self.guidance_scale != 1 and not self.embeds_guidance


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
    k: int | None = None,
    embeds_guidance: bool = False,
) -> Plan:
    """The plan for a model and LoRAs with these recipes. Options that are None or auto follow the recipes.

    grid: auto is the recipe's grid for an acceleration trained on a grid (lcm if it names none), else trailing.
    eta, gamma: the share of noise, in [0, 1], that ddim or tcd replaces by fresh noise. Other solvers have neither.
    k: skipping step of the training grid, from which lcm and quadratic choose. With grid auto, a k implies such a grid.
    strength: for image-to-image, in (0, 1]. The grid covers [0, strength * T], so the number of steps does not change.
    If fewer trained timesteps than steps are left there, the grid is trailing, and a note tells it.
    embeds_guidance: whether the network takes guidance as an input.
    Raises UsageError for impossible options.
    """
    fast = next((recipe for recipe in recipes if recipe.accelerates), None)
    name = (fast.solver if fast else "dpm-solver++") if solver == "auto" else solver
    if guidance_scale is None:
        recommended = (recipe.guidance_scale for recipe in ([fast] if fast else recipes))
        guidance_scale = next((scale for scale in recommended if scale is not None), DEFAULT_GUIDANCE_SCALE)
    refuse_zero_snr(name, schedule)
    asked, k = _training_grid(grid, k, name, fast)
    if steps is None:
        steps = (fast and fast.steps) or DEFAULT_STEPS
        if asked in TRAINING_GRIDS:
            steps = min(steps, len(skipping_grid(k, len(schedule))) * solver_named(name).calls)
    grid = reachable_grid(name, steps, asked, k, len(schedule), strength)
    timesteps = lay_timesteps(name, steps, grid, k, len(schedule), strength)
    notes = _notes(name, fast, steps, guidance_scale, embeds_guidance)
    if negative_prompt and (embeds_guidance or guidance_scale == 1):
        notes.append(no_negative_prompt(embeds_guidance))
    if fast and fast.edges and name == fast.solver and not stops_at(fast.edges, timesteps):
        notes.append(jumping_over(fast.edges, strength))
    if grid != asked:
        notes.append(between_trained(strength, k))
    fresh = (_fresh_noise("eta", eta, name, fast), _fresh_noise("gamma", gamma, name, fast))
    return Plan(name, tuple(timesteps), guidance_scale, tuple(map(Line, notes)), grid, k, *fresh, embeds_guidance)


def solver_named(name: str, eta: float | None = None, gamma: float | None = None) -> Solver:
    """The solver of that name. eta: of ddim, gamma: of tcd; None = the default. Raises UsageError for unknown names."""
    if name not in SOLVERS:
        raise UsageError(f"unknown solver {name!r}", f"known ones: {', '.join(SOLVERS)}")
    given = {"eta": eta, "gamma": gamma}
    own = {field: value for field, value in given.items() if value is not None and _solver_with(field) == name}
    return replace(SOLVERS[name], **own) if own else SOLVERS[name]  # type: ignore[type-var]


def _solver_with(field: str) -> str:
    """The name of the solver that has the field. Other names of it stand for one value of the field."""
    return next(name for name, solver in SOLVERS.items() if hasattr(solver, field))


def grid_named(grid: str, solver: str) -> str:
    """A name of GRIDS or TRAINING_GRIDS. auto is lcm for solvers of distilled networks, trailing for others."""
    if grid == "auto":
        return "lcm" if solver_named(solver).distilled_only else "trailing"
    if grid not in (*TRAINING_GRIDS, *GRIDS):
        raise UsageError(f"unknown grid {grid!r}", f"known ones: auto, {', '.join((*TRAINING_GRIDS, *GRIDS))}")
    return grid


def _training_grid(grid: str, k: int | None, solver: str, fast: Recipe | None) -> tuple[str, int]:
    """The grid's name and the skipping step of the training grid: the requested ones, else the recipe's."""
    own = fast.k if fast else None
    if grid == "auto" and fast and (fast.grid or own):
        grid = fast.grid or "lcm"
    grid = grid_named("lcm" if grid == "auto" and k else grid, solver)
    if k and grid not in TRAINING_GRIDS:
        raise UsageError(
            f"{option('k')} belongs to the training grid, but {option('grid')} is {grid}",
            f"add {option('grid')} lcm or {option('grid')} quadratic",
        )
    return grid, k or own or DEFAULT_K


def reachable_grid(solver: str, steps: int, grid: str, k: int, T: int, strength: float = 1.0) -> str:
    """The grid, or trailing if strength leaves fewer timesteps of the training grid than steps.

    Raises UsageError if the whole training grid has fewer timesteps than steps.
    """
    count = solver_steps(solver, steps)
    if grid not in TRAINING_GRIDS or count <= _reach(count, strength, T) // k:
        return grid
    if strength < 1:
        return "trailing"
    points, calls = len(skipping_grid(k, T)), solver_named(solver).calls
    raise UsageError(
        f"{option('steps')} {steps} is too many for the {grid} grid, which has {points} timesteps (k = {k})",
        f"use at most {points * calls}, or {option('grid')} trailing, which is not limited to the trained timesteps",
    )


def between_trained(strength: float, k: int) -> str:
    """The note for a strength that leaves fewer timesteps of the training grid than steps."""
    return f"strength {strength:g} leaves too few of the trained timesteps (k = {k}): the steps lie between them"


def lay_timesteps(solver: str, steps: int, grid: str, k: int, T: int, strength: float = 1.0) -> list[int]:
    """The timesteps, descending, at which the solver's steps begin. `steps` counts network evaluations.

    grid: from `reachable_grid`. strength: for image-to-image, in (0, 1]. The grid covers [0, strength * T], so the
    number of steps does not change.
    """
    count = solver_steps(solver, steps)
    reach = _reach(count, strength, T)
    if grid in TRAINING_GRIDS:
        return lcm_grid(count, k, reach, grid == "quadratic")
    return GRIDS[grid](count, reach)


def _reach(count: int, strength: float, T: int) -> int:
    """The number of timesteps that image-to-image uses: strength * T, but at least one for each step."""
    if not 0 < strength <= 1:
        raise UsageError(
            f"strength {strength:g} is outside 0 to 1", "0.6 keeps the picture's layout; 1 forgets the picture"
        )
    return max(math.ceil(strength * T), count)


def _fresh_noise(field: str, wish: float | None, name: str, fast: Recipe | None) -> float | None:
    """The requested value, else the recipe's if its solver is used. Raises UsageError if the solver lacks the field."""
    of = _solver_with(field)
    if name == of:
        own = getattr(fast, field) if fast and fast.solver == name else None
        return own if wish is None else wish
    if wish is not None:
        raise UsageError(
            f"{option(field)} belongs to the {of} solver, but the solver is {name}", f"add {option('solver')} {of}"
        )
    return None


def solver_steps(name: str, steps: int) -> int:
    """The number of solver steps for `steps` network evaluations."""
    calls = solver_named(name).calls
    if steps < 1 or steps % calls:
        raise UsageError(
            f"{name} makes {calls} network calls a step, but {option('steps')} {steps} is not a multiple of {calls}",
            f"use a multiple of {calls}",
        )
    if steps > 1000:
        raise UsageError(
            f"{option('steps')} {steps} is outside 1 to 1000", "4 is usual with an acceleration LoRA, 20 without"
        )
    return steps // calls


def _notes(name: str, fast: Recipe | None, steps: int, guidance_scale: float, embeds_guidance: bool) -> list[str]:
    notes = []
    if fast and fast.recognised_by:
        notes.append(
            f"a LoRA carries no recipe; its name contains '{fast.recognised_by}', so it is used with {fast.solver},"
            f" {number_of(fast.steps or steps, 'step')}, guidance {fast.guidance_scale:g}; {option('solver')},"
            f" {option('steps')} and {option('guidance_scale')} change that"
        )
    if fast and fast.caveat:
        notes.append(f"pictures will differ from its makers': {fast.caveat}")
    if embeds_guidance and fast and fast.teacher_guidance_scale:
        low, high = fast.teacher_guidance_scale
        if not low <= guidance_scale <= high:
            notes.append(
                f"guidance {guidance_scale:g} is outside {low:g} to {high:g}, which this model was trained for"
            )
    elif fast and (fast.guidance_scale or 1) <= 2 < guidance_scale:
        notes.append(
            f"guidance {guidance_scale:g} is too strong for an acceleration LoRA, which contains guidance: use 1 to 2"
        )
    if fast and steps > max(8, fast.steps or 1):
        notes.append(f"{steps} steps: an acceleration LoRA does not gain from more than 8")
    if fast and fast.solver not in ("auto", name):
        notes.append(f"the few-step LoRA or model was made for the {fast.solver} solver, but you asked for {name}")
    if not fast and solver_named(name).distilled_only:
        notes.append(f"the {name} solver needs an acceleration LoRA or a distilled model; without one, pictures blur")
    return notes


def no_negative_prompt(embeds_guidance: bool) -> str:
    """The note on a negative prompt that the network never sees."""
    reason = "with a model that takes guidance as an input" if embeds_guidance else "at guidance 1"
    return f"the negative prompt has no effect {reason}: {option('nag_scale')} 5 makes it work"


def stops_at(edges: Sequence[int], timesteps: Sequence[int]) -> bool:
    """Whether a step begins at every edge after the first."""
    return {edge for edge in edges if edge < timesteps[0]} <= set(timesteps)


def jumping_over(edges: Sequence[int], strength: float) -> str:
    """The note for steps that jump over an edge of the phases in which the LoRA was trained."""
    advice = f": use {len(edges)} steps or a multiple" if strength == 1 else ""
    return (
        f"this LoRA was trained in {len(edges)} phases, which begin at {', '.join(map(str, edges))}, but these steps"
        f" jump over some of them{advice}"
    )


def psi_named(name: str) -> Solver:
    """The ODE solver for the teacher's steps in distillation, by a name of SOLVERS. dpm-solver++ means 2S here.

    Raises UsageError for multistep, noisy and unknown solvers.
    """
    solver = SOLVERS.get("dpm-solver++2s" if name == "dpm-solver++" else name)
    if name == "dpm-solver++2m" or (solver and (solver.multistep or solver.order == 0)):
        reason = "adds noise" if solver and solver.order == 0 else "is multistep, and without history it is only DDIM"
        raise UsageError(f"{option('psi')} {name} {reason}", "use ddim, dpm-solver or dpm-solver++ (single-step)")
    if solver is None:
        raise UsageError(f"unknown {option('psi')} {name!r}", "use ddim, dpm-solver or dpm-solver++")
    return solver


def refuse_zero_snr(name: str, schedule: NoiseSchedule) -> None:
    """Raise UsageError for a solver that divides by alpha, on a schedule that begins at pure noise (trap 10)."""
    if solver_named(name).divides_by_alpha and schedule.zero_terminal_snr:
        raise UsageError(f"{name} divides by alpha, which is 0 where this model starts", "use dpm-solver++ instead")


def without_text(draw: Draw, model: str) -> Draw:
    """The request with guidance off, for a model that takes no text.

    Raises UsageError for text, and for guidance, neither of which it can follow. model: its name, for errors.
    """
    hint = f"leave it out; {option('seed')} and {option('count')} choose the pictures"
    if text := next((prompt for prompt in draw.prompts if prompt), ""):
        raise UsageError(f"{model} draws without a prompt, but got {text!r}", hint, "prompts")
    for name, off in (("negative_prompt", ""), ("guidance_scale", 1)):
        if getattr(draw, name) not in (off, None):
            raise UsageError(f"{option(name)}: {model} draws without a prompt, so there is nothing to guide", hint)
    return draw.model_copy(update={"guidance_scale": 1.0})
