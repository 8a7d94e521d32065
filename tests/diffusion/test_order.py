"""The measured order of convergence of every deterministic solver, on Gaussians with a known answer."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fewstep.diffusion.schedule import NoiseLevel, schedule_from_config
from fewstep.diffusion.solvers import (
    DDIM,
    SOLVERS,
    DPMSolver2,
    DPMSolver3,
    DPMSolverPP2M,
    DPMSolverPP2S,
    DPMSolverPP3M,
    Heun,
    Solver,
    run_step,
)
from tests.diffusion.gaussian import draws, several_gaussians, slope, stable_diffusion_schedule

SCHEDULE = stable_diffusion_schedule()
DATA = several_gaussians()
Z = draws(2, 5, 2, 2)
STEPS = [64, 128, 256]  # trap 6: orders are asymptotic, DPM-Solver++(2M)'s from 64 steps up

PSI = [DDIM(), DPMSolver2(), DPMSolver3(), DPMSolverPP2S(), Heun()]
every_solver = pytest.mark.parametrize("solver", [*PSI, DPMSolverPP2M()])
every_psi = pytest.mark.parametrize("solver", PSI)


def no_noise() -> Tensor:
    raise AssertionError("a deterministic solver drew noise")


def level(half_log_snr: float) -> NoiseLevel:
    return SCHEDULE.at_half_log_snr(torch.tensor([half_log_snr], dtype=torch.float64), torch.float64)


def sampling_error(solver: Solver, steps: int, exact_starts: int = 1) -> float:
    """RMS distance to the exact solution between two finite levels, on a grid uniform in half_log_snr.

    exact_starts: the steps that begin on the exact solution, so leave nothing but their history.
    """
    grid = torch.linspace(-2.0, 2.5, steps + 1, dtype=torch.float64)
    levels = [level(float(x)) for x in grid]
    x, state = DATA.x(Z, levels[0]), None
    for i, (s, t) in enumerate(pairwise(levels)):
        x = DATA.x(Z, s) if i < exact_starts else x
        x, state = run_step(solver.step(x, solver.levels(SCHEDULE, s, t), state, no_noise), DATA.denoise)
    return float((x - DATA.x(Z, levels[-1])).square().mean().sqrt())


def local_error(solver: Solver, h: float, start: float) -> float:
    """RMS distance to the exact solution after one step of size h in half_log_snr."""
    s, t = level(start), level(start + h)
    x_t, _ = run_step(solver.step(DATA.x(Z, s), solver.levels(SCHEDULE, s, t), None, None), DATA.denoise)
    return float((x_t - DATA.x(Z, t)).square().mean().sqrt())


@every_solver
def test_sampler_converges_at_the_order_of_its_solver(solver):
    errors = [sampling_error(solver, steps) for steps in STEPS]
    assert -slope(STEPS, errors) == pytest.approx(solver.order, abs=0.15)


def test_dpm_solver_pp_3m_is_third_order_from_exact_starting_values():
    """Up to 512 steps, for its constant is still settling at 64.

    Cold, its one first-order step errs by h**2, whatever follows: second order when steps are many.
    """
    steps = [128, 256, 512]
    warm, cold = ([sampling_error(DPMSolverPP3M(), n, starts) for n in steps] for starts in (3, 1))
    assert -slope(steps, warm) == pytest.approx(DPMSolverPP3M().order, abs=0.15)
    assert -slope(steps, cold) == pytest.approx(2, abs=0.3)


def test_no_solver_that_draws_nothing_is_left_out():
    deterministic = {type(solver) for solver in SOLVERS.values() if solver.order > 0}
    assert deterministic == {type(solver) for solver in [*PSI, DPMSolverPP2M(), DPMSolverPP3M()]}


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_with_fresh_noise_the_distribution_converges_at_first_order(eta):
    """On Gaussians x stays Gaussian: each step is x -> a x + b + c z, read off at x = 0 and 1 and z = 0 and 1.

    What is measured is the distance of mean and deviation to the data's at the last level, over all channels.
    """
    errors = []
    for steps in STEPS:
        levels = [level(float(x)) for x in torch.linspace(-2.0, 2.5, steps + 1, dtype=torch.float64)]
        mean, std = levels[0].alpha * DATA.mean, DATA.spread(levels[0])
        for s, t in pairwise(levels):
            zero, one = torch.zeros_like(mean), torch.ones_like(mean)
            b, moved, noisy = (
                run_step(DDIM(eta).step(x, (s, t), None, lambda z=z: z), DATA.denoise)[0]
                for x, z in ((zero, zero), (one, zero), (zero, one))
            )
            mean, std = (moved - b) * mean + b, (((moved - b) * std) ** 2 + (noisy - b) ** 2).sqrt()
        off = torch.cat([mean - levels[-1].alpha * DATA.mean, std - DATA.spread(levels[-1])])
        errors.append(float(off.square().mean().sqrt()))
    assert -slope(STEPS, errors) == pytest.approx(1, abs=0.15)


@every_solver
def test_more_steps_are_never_worse(solver):
    errors = [sampling_error(solver, steps) for steps in (8, 16, 32, 64)]
    assert errors == sorted(errors, reverse=True)


@every_psi
@pytest.mark.parametrize("start", [-2.0, 0.0, 2.0])
def test_one_step_of_psi_errs_at_one_order_more_than_its_solver(solver, start):
    sizes = [2.0**-k for k in (4, 5, 6, 7)]
    errors = [local_error(solver, h, start) for h in sizes]
    assert slope(sizes, errors) == pytest.approx(solver.order + 1, abs=0.15)


def test_multistep_solver_without_history_is_ddim_and_says_it_is_no_psi():
    """Trap 7: DPM-Solver++(2M) and (3M) cannot be Psi, for as one step they are first order."""
    assert [name for name, solver in SOLVERS.items() if solver.multistep] == ["dpm-solver++", "dpm-solver++3m"]
    s, t = level(-1.0), level(0.0)
    x_s = DATA.x(Z, s)
    for solver in (DPMSolverPP2M(), DPMSolverPP3M()):
        first, _ = run_step(solver.step(x_s, (s, t), None, None), DATA.denoise)
        expected, _ = run_step(DDIM().step(x_s, (s, t), None, None), DATA.denoise)
        torch.testing.assert_close(first, expected, rtol=1e-12, atol=1e-12)


def test_ddim_is_exact_for_a_point_of_data():
    """With std = 0 the estimate of x_0 is constant along the ODE, and a step of any size is exact."""
    point = type(DATA)(DATA.mean, torch.zeros_like(DATA.std))
    s, t = level(-2.0), level(2.5)
    for solver in (DDIM(), DPMSolverPP2S()):
        x_t, _ = run_step(solver.step(point.x(Z, s), solver.levels(SCHEDULE, s, t), None, None), point.denoise)
        torch.testing.assert_close(x_t, point.x(Z, t), rtol=1e-12, atol=1e-12)


def test_ddim_is_eulers_step_of_x_over_alpha_in_sigma_over_alpha():
    s, t = level(-1.0), level(0.0)
    x_s = DATA.x(Z, s)
    scaled, slope_s = x_s / s.alpha, (x_s - s.alpha * DATA.denoise(x_s, s)) / s.sigma
    expected = t.alpha * (scaled + (t.sigma / t.alpha - s.sigma / s.alpha) * slope_s)
    x_t, _ = run_step(DDIM().step(x_s, (s, t), None, None), DATA.denoise)
    torch.testing.assert_close(x_t, expected, rtol=1e-12, atol=1e-12)


def test_heun_is_dpm_solver_2_with_its_inner_level_at_the_end():
    s, t = level(-1.0), level(0.0)
    x_s = DATA.x(Z, s)
    x_t, _ = run_step(Heun().step(x_s, Heun().levels(SCHEDULE, s, t), None, None), DATA.denoise)
    expected, _ = run_step(DPMSolver2().step(x_s, (s, t, t), None, None), DATA.denoise)
    torch.testing.assert_close(x_t, expected, rtol=1e-12, atol=1e-12)


def test_heun_does_not_overshoot_from_what_is_nearly_pure_noise():
    schedule = schedule_from_config({"beta_schedule": "squaredcos_cap_v2"})
    s, t = (schedule.at(torch.tensor([at]), torch.float64) for at in (999.0, 949.0))
    assert 0 < s.alpha < 1e-4
    first_order, heun = (
        run_step(solver.step(DATA.x(Z, s), solver.levels(schedule, s, t), None, None), DATA.denoise)[0] - DATA.x(Z, t)
        for solver in (DDIM(), Heun())
    )
    assert heun.norm() < first_order.norm()
