"""The measured order of convergence of every deterministic solver, on Gaussians with a known answer."""

import pytest
import torch
from torch import Tensor

from fewstep.diffusion.sampler import sample
from fewstep.diffusion.schedule import NoiseLevel
from fewstep.diffusion.solvers import DDIM, SOLVERS, DPMSolver2, DPMSolverPP2M, DPMSolverPP2S, Solver
from tests.diffusion.gaussian import draws, several_gaussians, slope, stable_diffusion_schedule

SCHEDULE = stable_diffusion_schedule()
DATA = several_gaussians()
Z = draws(2, 5, 2, 2)
STEPS = [64, 128, 256]  # trap 6: orders are asymptotic, DPM-Solver++(2M)'s from 64 steps up

every_solver = pytest.mark.parametrize("solver", [DDIM(), DPMSolver2(), DPMSolverPP2M(), DPMSolverPP2S()])
every_psi = pytest.mark.parametrize("solver", [DDIM(), DPMSolver2(), DPMSolverPP2S()])


def no_noise() -> Tensor:
    raise AssertionError("a deterministic solver drew noise")


def level(half_log_snr: float) -> NoiseLevel:
    return SCHEDULE.at_half_log_snr(torch.tensor([half_log_snr], dtype=torch.float64), torch.float64)


def sampling_error(solver: Solver, steps: int, noisiest: float = -2.0, cleanest: float = 2.5) -> float:
    """RMS distance to the exact solution between two finite levels, on a grid uniform in half_log_snr."""
    grid = torch.linspace(noisiest, cleanest, steps + 1, dtype=torch.float64)
    levels = [level(float(x)) for x in grid]
    x = sample(DATA.denoise, solver, SCHEDULE, levels, DATA.x(Z, levels[0]), no_noise)
    return float((x - DATA.x(Z, levels[-1])).square().mean().sqrt())


def local_error(solver: Solver, h: float, start: float) -> float:
    """RMS distance to the exact solution after one step of size h in half_log_snr."""
    s, t = level(start), level(start + h)
    x_t, _ = solver.step(DATA.denoise, DATA.x(Z, s), solver.levels(SCHEDULE, s, t), None, None)
    return float((x_t - DATA.x(Z, t)).square().mean().sqrt())


@every_solver
def test_sampler_converges_at_the_order_of_its_solver(solver):
    errors = [sampling_error(solver, steps) for steps in STEPS]
    assert -slope(STEPS, errors) == pytest.approx(solver.order, abs=0.15)


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
    """Trap 7: DPM-Solver++(2M) cannot be Psi, for as one step it is first order."""
    assert [name for name, solver in SOLVERS.items() if solver.multistep] == ["dpm-solver++"]
    s, t = level(-1.0), level(0.0)
    x_s = DATA.x(Z, s)
    first, _ = DPMSolverPP2M().step(DATA.denoise, x_s, (s, t), None, None)
    torch.testing.assert_close(first, DDIM().step(DATA.denoise, x_s, (s, t), None, None)[0], rtol=1e-12, atol=1e-12)


def test_ddim_is_exact_for_a_point_of_data():
    """With std = 0 the estimate of x_0 is constant along the ODE, and a step of any size is exact."""
    point = type(DATA)(DATA.mean, torch.zeros_like(DATA.std))
    s, t = level(-2.0), level(2.5)
    for solver in (DDIM(), DPMSolverPP2S()):
        x_t, _ = solver.step(point.denoise, point.x(Z, s), solver.levels(SCHEDULE, s, t), None, None)
        torch.testing.assert_close(x_t, point.x(Z, t), rtol=1e-12, atol=1e-12)
