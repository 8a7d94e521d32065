"""Plans: the recipe is followed, wishes come first, the steps are always as many as asked."""

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.diffusion.schedule import lcm_grid, schedule_from_config, trailing_grid
from fewstep.diffusion.solvers import DDIM, SOLVERS, TCD, DPMSolver2, DPMSolver3, DPMSolverPP2S, Heun
from fewstep.errors import UsageError
from fewstep.lora.recipe import Recipe
from fewstep.session.plan import plan_sampling, psi_named, refuse_zero_snr

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULE = schedule_from_config(STABLE_DIFFUSION)
ZERO_SNR = schedule_from_config(STABLE_DIFFUSION | {"rescale_betas_zero_snr": True})
LCM = Recipe(method="lcd", solver="lcm", steps=4, guidance_scale=1.0, k=20)
STYLE = Recipe(method="denoising")


def test_defaults_without_recipes():
    plan = plan_sampling(SCHEDULE, [])
    assert (plan.solver_name, plan.steps, plan.guidance_scale, plan.nfe) == ("dpm-solver++", 20, 7.5, 40)
    assert plan.timesteps == tuple(trailing_grid(20))
    assert not plan.consistency
    assert plan.notes == ()


def test_auto_follows_the_recipe():
    plan = plan_sampling(SCHEDULE, [STYLE, LCM])
    assert (plan.solver_name, plan.steps, plan.guidance_scale, plan.nfe) == ("lcm", 4, 1.0, 4)
    assert plan.timesteps == (999, 759, 499, 259)
    assert plan.consistency
    assert plan.notes == ()


def test_a_style_is_sampled_as_its_model_is():
    assert plan_sampling(SCHEDULE, [STYLE]) == plan_sampling(SCHEDULE, [])


def test_a_recipe_may_leave_everything_open():
    plan = plan_sampling(SCHEDULE, [Recipe(method="lcd", solver="ddim", guidance_scale=0.0)])
    assert (plan.solver_name, plan.steps, plan.guidance_scale) == ("ddim", 20, 0.0)


def test_the_recipes_own_grid():
    plan = plan_sampling(SCHEDULE, [LCM.model_copy(update={"k": 100})], steps=3)
    assert plan.timesteps == tuple(lcm_grid(3, 100)) == (999, 699, 399)


def test_the_recipes_own_part_of_the_grid():
    dense = LCM.model_copy(update={"k": 50, "grid": "quadratic"})
    plan = plan_sampling(SCHEDULE, [dense])
    assert (plan.grid, plan.k, plan.timesteps) == ("quadratic", 50, tuple(lcm_grid(4, 50, quadratic=True)))
    assert plan_sampling(SCHEDULE, [dense], grid="lcm").timesteps == tuple(lcm_grid(4, 50))


def test_the_skipping_step_can_be_asked_for():
    """So that a row without the LoRA samples where the row with it does."""
    with_lora = plan_sampling(SCHEDULE, [LCM.model_copy(update={"k": 100, "grid": "quadratic"})])
    assert with_lora.timesteps == (999, 599, 199, 99)
    without = plan_sampling(SCHEDULE, [], "lcm", 4, grid="quadratic", k=100)
    assert (without.timesteps, without.k, without.grid) == (with_lora.timesteps, 100, "quadratic")
    assert plan_sampling(SCHEDULE, [LCM], k=100).timesteps == (999, 799, 499, 299)
    assert plan_sampling(SCHEDULE, [], "ddim", 4, k=100).grid == "lcm"  # a k asks for the grid that has one
    with pytest.raises(
        UsageError, match=r"^k belongs to the training grid, but grid is trailing\n\nhint: add grid lcm"
    ):
        plan_sampling(SCHEDULE, [], "ddim", 4, grid="trailing", k=100)
    with pytest.raises(UsageError, match=r"^skipping step k = 1001 is outside 1 to 1000"):
        plan_sampling(SCHEDULE, [], "lcm", 4, k=1001)


@pytest.mark.parametrize("grid", ["lcm", "quadratic"])
def test_steps_beyond_the_training_grid_are_refused(grid):
    coarse = LCM.model_copy(update={"k": 100, "grid": grid})
    assert plan_sampling(SCHEDULE, [coarse], steps=10).timesteps == tuple(range(999, 0, -100))
    for solver, steps, most in (("lcm", 11, 10), ("tcd", 12, 10), ("heun", 22, 20), ("dpm-solver-3", 33, 30)):
        message = rf"^steps {steps} is too many for the {grid} grid, which has 10 timesteps \(k = 100\)"
        with pytest.raises(UsageError, match=rf"{message}\n\nhint: use at most {most}, or grid trailing"):
            plan_sampling(SCHEDULE, [coarse], solver, steps)
        assert plan_sampling(SCHEDULE, [coarse], solver, most).steps == most
    assert plan_sampling(SCHEDULE, [coarse], steps=12, grid="trailing").timesteps == tuple(trailing_grid(12))


def test_a_grid_shortened_by_strength_keeps_the_steps_and_says_that_they_are_not_the_trained_ones():
    coarse = LCM.model_copy(update={"k": 100, "grid": "quadratic"})
    told = "strength 0.5 leaves too few of the trained timesteps (k = 100): the steps lie between them"
    enough = plan_sampling(SCHEDULE, [coarse], steps=5, strength=0.5)
    assert (enough.timesteps, enough.grid, enough.notes) == ((499, 399, 299, 199, 99), "quadratic", ())
    plan = plan_sampling(SCHEDULE, [coarse], steps=6, strength=0.5)
    assert (plan.timesteps, plan.grid, plan.notes) == (tuple(trailing_grid(6, 500)), "trailing", (told,))
    low = plan_sampling(SCHEDULE, [coarse], steps=1, strength=0.05)
    assert (low.timesteps, low.grid, len(low.notes)) == ((49,), "trailing", 1)  # 99 is the first trained one


def test_recommended_steps_are_as_many_as_the_training_grid_has():
    assert plan_sampling(SCHEDULE, [LCM.model_copy(update={"k": 400})]).timesteps == (799, 399)
    assert plan_sampling(SCHEDULE, [LCM.model_copy(update={"k": 100, "steps": None})], "heun").steps == 20


def test_wishes_come_before_the_recipe():
    plan = plan_sampling(SCHEDULE, [LCM], "ddim", 2, 1.5)
    assert (plan.solver_name, plan.steps, plan.guidance_scale, plan.nfe) == ("ddim", 2, 1.5, 4)
    assert not plan.consistency
    assert plan.timesteps == (999, 499)  # still on the grid the network was distilled on


@pytest.mark.parametrize("name", ["lcm", "tcd"])
def test_solvers_of_distilled_networks_take_their_grid_without_a_recipe(name):
    plan = plan_sampling(SCHEDULE, [], name, 4)
    assert plan.timesteps == (999, 759, 499, 259)
    assert plan.consistency == (name == "lcm")


def test_second_order_steps_cost_two_calls():
    plan = plan_sampling(SCHEDULE, [], "dpm-solver", 8, 1.0)
    assert (len(plan.timesteps), plan.steps, plan.nfe) == (4, 8, 8)
    for name in ("dpm-solver", "dpm-solver++2s", "heun"):
        with pytest.raises(
            UsageError, match=rf"^{name.replace('+', '[+]')} makes 2 network calls a step, but steps 5 "
        ):
            plan_sampling(SCHEDULE, [], name, 5)


def test_third_order_steps_cost_three_calls():
    plan = plan_sampling(SCHEDULE, [], "dpm-solver-3", 9, 1.0)
    assert (len(plan.timesteps), plan.steps, plan.nfe) == (3, 9, 9)
    with pytest.raises(UsageError, match=r"^dpm-solver-3 makes 3 network calls a step.*\n\nhint: use a multiple of 3$"):
        plan_sampling(SCHEDULE, [], "dpm-solver-3", 8)
    assert plan_sampling(SCHEDULE, [], "dpm-solver++3m", 8, 1.0).nfe == 8


def notes(*arguments, **options):
    return " | ".join(plan_sampling(SCHEDULE, *arguments, **options).notes)


def test_notes():
    assert "guidance 7.5 is too strong for an acceleration LoRA" in notes([LCM], guidance_scale=7.5)
    assert notes([LCM], guidance_scale=2) == ""
    assert "12 steps: an acceleration LoRA does not gain from more than 8" in notes([LCM], steps=12)
    assert notes([LCM], steps=8) == ""
    assert "made for the lcm solver, but you asked for ddim" in notes([LCM], "ddim")
    for name in ("lcm", "tcd"):
        assert f"the {name} solver needs an acceleration LoRA" in notes([], name)
    assert "negative prompt has no effect at guidance 1" in notes([LCM], negative_prompt=True)
    assert notes([], negative_prompt=True) == ""


def test_what_cannot_be():
    with pytest.raises(UsageError, match=r"^unknown solver 'leap'\n\nhint: known ones: ddim, euler, "):
        plan_sampling(SCHEDULE, [], "leap")
    for steps in (0, -1, 1001):
        with pytest.raises(UsageError, match=f"steps {steps}"):
            plan_sampling(SCHEDULE, [], "ddim", steps)
    for strength in (0, -0.5, 1.5, math.nan):
        with pytest.raises(UsageError, match=f"^strength {strength:g} is outside 0 to 1\n\nhint: "):
            plan_sampling(SCHEDULE, [], strength=strength)


def test_pure_noise_is_no_start_for_dpm_solver():
    for name, steps in (("dpm-solver", 4), ("dpm-solver-3", 6)):
        message = rf"^{name} divides by alpha.*\n\nhint: use dpm-solver\+\+ instead$"
        with pytest.raises(UsageError, match=message):
            plan_sampling(ZERO_SNR, [], name, steps)
        with pytest.raises(UsageError, match=message):
            refuse_zero_snr(name, ZERO_SNR)
    assert plan_sampling(ZERO_SNR, [], "heun", 4).steps == 4
    assert plan_sampling(ZERO_SNR, [], "dpm-solver++", 4).steps == 4
    refuse_zero_snr("dpm-solver++", ZERO_SNR)
    assert psi_named("dpm-solver++").calls == 2
    assert plan_sampling(SCHEDULE, [], "dpm-solver", 4).steps == 4


def test_psi():
    assert psi_named("ddim") is SOLVERS["ddim"]
    assert isinstance(psi_named("dpm-solver"), DPMSolver2)
    assert isinstance(psi_named("dpm-solver-3"), DPMSolver3)
    assert isinstance(psi_named("heun"), Heun)
    assert isinstance(psi_named("dpm-solver++"), DPMSolverPP2S)  # never the multistep one
    with pytest.raises(UsageError, match=r"multistep.*\n\nhint: use ddim, dpm-solver or dpm-solver\+\+ \(single"):
        psi_named("dpm-solver++2m")
    with pytest.raises(UsageError, match=r"psi dpm-solver\+\+3m is multistep"):
        psi_named("dpm-solver++3m")
    for name in ("lcm", "tcd", "euler-a"):
        with pytest.raises(UsageError, match=f"psi {name} adds noise"):
            psi_named(name)
    with pytest.raises(UsageError, match="unknown psi 'leap'"):
        psi_named("leap")


def test_fresh_noise_is_the_wish_or_the_recipes():
    tcd = Recipe(method="tcd", solver="tcd", steps=4, guidance_scale=1.0, k=20, gamma=0.1)
    assert plan_sampling(SCHEDULE, [], "ddim", eta=0.5).solver == DDIM(0.5)
    assert plan_sampling(SCHEDULE, [], "ddim").solver is SOLVERS["ddim"]
    assert plan_sampling(SCHEDULE, [tcd]).solver == TCD(0.1)
    assert plan_sampling(SCHEDULE, [tcd], gamma=0.0).solver == TCD(0.0)
    assert plan_sampling(SCHEDULE, [], "tcd").solver == TCD(0.3)
    assert plan_sampling(SCHEDULE, [tcd], "ddim").solver == DDIM()
    assert plan_sampling(SCHEDULE, [tcd.model_copy(update={"solver": "ddim", "eta": 1.0})]).solver == DDIM(1.0)
    for name in ("euler", "lcm", "dpm-solver++"):
        with pytest.raises(UsageError, match=f"eta belongs to the ddim solver, but the solver is {re.escape(name)}"):
            plan_sampling(SCHEDULE, [], name, eta=0.5)
    with pytest.raises(
        UsageError, match="gamma belongs to the tcd solver, but the solver is ddim\n\nhint: add solver tcd"
    ):
        plan_sampling(SCHEDULE, [], "ddim", gamma=0.5)


def test_names_of_one_step():
    assert SOLVERS["euler"] == SOLVERS["dpm-solver-1"] == SOLVERS["ddim"] == DDIM()
    assert SOLVERS["euler-a"] == DDIM(eta=1.0)
    assert plan_sampling(ZERO_SNR, [], "dpm-solver-1", 4).steps == 4  # this one does not divide by alpha


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    strength=st.floats(0, 1, exclude_min=True),
    steps=st.integers(1, 50),
    solver=st.sampled_from([*SOLVERS, "auto"]),
    recipes=st.sampled_from([(), (LCM,), (LCM.model_copy(update={"k": 7}),), (STYLE,)]),
)
def test_the_steps_are_always_as_many_as_asked(strength, steps, solver, recipes):
    calls = SOLVERS[solver].calls if solver != "auto" else 1
    asked = steps * calls
    plan = plan_sampling(SCHEDULE, recipes, solver, asked, 3.0, strength)
    assert plan.steps == asked
    assert plan.nfe == 2 * asked
    assert len(plan.timesteps) == steps
    assert all(s > t for s, t in pairwise(plan.timesteps))
    assert plan.timesteps[-1] >= 0
    reach = max(math.ceil(strength * len(SCHEDULE)), steps)
    assert plan.timesteps[0] < reach
    # image-to-image begins as near to its strength as the grid allows
    assert plan.timesteps[0] >= reach - 20


@pytest.mark.parametrize("strength", [0.05, 0.3, 1.0])
def test_strength_moves_the_start(strength):
    first = plan_sampling(SCHEDULE, [], "ddim", 10, strength=strength).timesteps[0]
    assert first == round(1000 * strength) - 1


@pytest.mark.parametrize(
    ("grid", "timesteps"),
    [
        ("auto", (999, 749, 499, 249)),
        ("trailing", (999, 749, 499, 249)),
        ("leading", (751, 501, 251, 1)),
        ("linspace", (999, 666, 333, 0)),
        ("lcm", (999, 759, 499, 259)),
        ("quadratic", (999, 559, 239, 59)),
    ],
)
def test_the_grid_can_be_asked_for(grid, timesteps):
    assert plan_sampling(SCHEDULE, [], "ddim", 4, grid=grid).timesteps == timesteps
