"""The boundary scalings, and the true consistency function of a Gaussian as the fixed point of distillation."""

import pytest
import torch
from diffusers import LCMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewstep.diffusion.consistency import ConsistencyDenoiser, boundary_scalings, consistency
from fewstep.diffusion.schedule import NoiseLevel, clean_level
from fewstep.diffusion.solvers import DDIM, DPMSolver2, DPMSolverPP2S, run_step
from tests.diffusion.gaussian import draws, several_gaussians, slope, stable_diffusion_schedule

law = settings(max_examples=40, deadline=None)
SCHEDULE = stable_diffusion_schedule()
DATA = several_gaussians()
Z = draws(2, 5, 2, 2)


def at(t: float) -> NoiseLevel:
    return SCHEDULE.at(t, torch.float64)


def inner(x_t: Tensor, level: NoiseLevel) -> Tensor:
    """The network's share of the true consistency function: f = c_skip x + c_out inner is the end of x's path."""
    c_skip, c_out = boundary_scalings(level.t.view(-1, 1, 1, 1))
    return (DATA.flow(x_t, level, clean_level(1, torch.float64)) - c_skip * x_t) / c_out


def residual(x_s: Tensor, s: NoiseLevel, x_t: Tensor, t: NoiseLevel) -> float:
    """What consistency distillation drives to 0: |f(x_s, s) - f(x_t, t)|, RMS."""
    return float((consistency(inner, x_s, s) - consistency(inner, x_t, t)).square().mean().sqrt())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_f_at_the_boundary_is_the_identity(dtype):
    x = draws(2, 4, 3, 3).to(dtype)
    wild = torch.full_like(x, 1e6)
    assert torch.equal(consistency(lambda x_t, level: wild, x, clean_level(2, dtype)), x)
    assert torch.equal(consistency(lambda x_t, level: wild, x, SCHEDULE.at([0.0], dtype)), x)


@law
@given(st.integers(0, 999))
def test_boundary_scalings_equal_diffusers(t):
    theirs = LCMScheduler().get_scalings_for_boundary_condition_discrete(torch.tensor(t, dtype=torch.float64))
    ours = boundary_scalings(torch.tensor([t], dtype=torch.float64))
    for a, b in zip(ours, theirs, strict=True):
        assert float(a) == pytest.approx(float(b), rel=1e-14, abs=0)


@law
@given(st.floats(0.1, 2))
def test_boundary_scalings_at_0_are_exactly_1_and_0_whatever_sigma_data(sigma_data):
    c_skip, c_out = boundary_scalings(torch.zeros(1, dtype=torch.float64), sigma_data)
    assert (float(c_skip), float(c_out)) == (1, 0)


@law
@given(st.floats(0, 999), st.floats(0.1, 2), st.floats(0.5, 20))
def test_boundary_scalings_hold_c_skip_plus_c_out_squared_to_one(t, sigma_data, scaling):
    """With scaled = t scaling: sigma_data**2 / norm**2 + scaled**2 / norm**2 = 1."""
    c_skip, c_out = boundary_scalings(torch.tensor([t], dtype=torch.float64), sigma_data, scaling)
    assert float(c_skip + c_out**2) == pytest.approx(1, abs=1e-14)
    assert 0 <= float(c_out) <= 1


def test_the_boundary_is_used_up_by_the_first_timestep():
    """Trap 4: 10 / sqrt(10**2 + 0.5**2)."""
    c_skip, c_out = boundary_scalings(torch.tensor([1.0], dtype=torch.float64))
    assert float(c_out) == pytest.approx(0.9988, abs=5e-5)
    assert float(c_skip) == pytest.approx(0.25 / 100.25, rel=1e-14)


def test_consistency_takes_a_level_per_image():
    x = draws(3, 5, 2, 2)
    together = consistency(DATA.denoise, x, SCHEDULE.at([999, 259, 0.5], torch.float64))
    for i, t in enumerate((999, 259, 0.5)):
        torch.testing.assert_close(together[i : i + 1], consistency(DATA.denoise, x[i : i + 1], at(t)))


def test_consistency_denoiser_is_the_consistency_function():
    x, s = draws(2, 5, 2, 2), at(259)
    assert torch.equal(ConsistencyDenoiser(DATA.denoise)(x, s), consistency(DATA.denoise, x, s))


def test_true_consistency_function_ends_every_path_at_its_clean_end():
    for t in (999, 500.5, 19, 1, 0.1):
        clean = consistency(inner, DATA.x(Z, at(t)), at(t))
        torch.testing.assert_close(clean, DATA.mean + DATA.std * Z, rtol=1e-12, atol=1e-12)


@law
@given(st.floats(1, 999), st.floats(0.01, 0.99))
def test_distillation_with_the_exact_psi_has_the_true_consistency_function_as_its_fixed_point(t_s, part):
    s, t = at(t_s), at(max(t_s * part, 0.5))
    x_s = DATA.x(Z, s)
    assert residual(x_s, s, DATA.flow(x_s, s, t), t) < 1e-12


@pytest.mark.parametrize("psi", [DDIM(), DPMSolver2(), DPMSolverPP2S()])
@pytest.mark.parametrize("t_s", [979.0, 499.0, 99.0])
def test_distillation_residual_falls_at_the_local_order_of_psi(psi, t_s):
    """As the skipping step shrinks, between the points of the table too."""
    s = at(t_s)
    x_s, sizes, residuals = DATA.x(Z, s), [2.0**-k for k in (4, 5, 6, 7)], []
    for h in sizes:
        t = SCHEDULE.at_half_log_snr(s.half_log_snr + h, torch.float64)
        x_t, _ = run_step(psi.step(x_s, psi.levels(SCHEDULE, s, t), None, None), DATA.denoise)
        residuals.append(residual(x_s, s, x_t, t))
    assert slope(sizes, residuals) == pytest.approx(psi.order + 1, abs=0.15)


@pytest.mark.parametrize("s_index", [1, 10, 49])
def test_second_order_psi_leaves_a_smaller_residual_than_ddim_on_the_training_grid(s_index):
    """At the method's own k = 20, s = 20 i - 1 (trap 9)."""
    s, t = at(20.0 * s_index + 19), at(20.0 * s_index - 1)
    x_s = DATA.x(Z, s)
    ends = [
        run_step(psi.step(x_s, psi.levels(SCHEDULE, s, t), None, None), DATA.denoise)[0]
        for psi in (DDIM(), DPMSolverPP2S())
    ]
    first_order, second_order = (residual(x_s, s, x_t, t) for x_t in ends)
    assert second_order < first_order
