"""What every solver's step obeys: batches, the clean end, the count of network evaluations."""

import pytest
import torch

from fewstep.diffusion.guidance import Conditioning, GuidedDenoiser
from fewstep.diffusion.prediction import PREDICTIONS, Eps
from fewstep.diffusion.sampler import ImageNoise, sample, sampling_levels
from fewstep.diffusion.schedule import NoiseLevel, clean_level, lcm_grid, schedule_from_config, trailing_grid
from fewstep.diffusion.solvers import (
    DDIM,
    LCM,
    SOLVERS,
    TCD,
    DPMSolver2,
    DPMSolver3,
    DPMSolverPP2M,
    DPMSolverPP2S,
    DPMSolverPP3M,
    Heun,
    run_step,
)
from tests.diffusion.gaussian import STABLE_DIFFUSION, draws, several_gaussians, stable_diffusion_schedule
from tests.diffusion.tiny import TinyNetwork, text

SCHEDULE = stable_diffusion_schedule()
DATA = several_gaussians()
every_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
midpoint = pytest.mark.parametrize("solver", [DPMSolver2(), DPMSolverPP2S()])
several_stages = pytest.mark.parametrize(
    ("solver", "inner"),
    [(solver, [249.5]) for solver in (DPMSolver2(), DPMSolverPP2S(), Heun())]
    + [(DPMSolver3(), [499 * 2 / 3, 499 / 3])],
)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def at(*timesteps: float) -> NoiseLevel:
    return SCHEDULE.at(timesteps, torch.float64)


def join(*levels: NoiseLevel) -> NoiseLevel:
    """One level for each image."""
    return NoiseLevel(*(torch.cat(part) for part in zip(*levels, strict=True)))


def denoiser(batch: slice = slice(None), prediction=PREDICTIONS["v_prediction"]) -> GuidedDenoiser:
    conditioning = Conditioning(text(3, 0.5).text[batch])
    empty = text(1, -0.5).expand(len(conditioning.text))
    return GuidedDenoiser(TinyNetwork(), prediction, conditioning, empty, guidance_scale=3.0)


@every_solver
@pytest.mark.parametrize("name", PREDICTIONS)
def test_step_with_a_level_per_image_equals_the_steps_one_by_one(solver, name):
    """Two steps, so that a multistep solver's history is used; the second of the last image ends clean."""
    grids = [(999, 759, 499), (600.5, 480.25, 3), (259, 19, None)]
    fixed = draws(3, 4, 3, 3, seed=5)

    def levels(grid):
        return [clean_level(1, torch.float64) if t is None else at(t) for t in grid]

    def two_steps(path, x, batch, noise):
        denoise = denoiser(batch, PREDICTIONS[name])
        return sample(denoise, solver, SCHEDULE, path, x, lambda: noise)

    x = draws(3, 4, 3, 3)
    together = two_steps([join(*column) for column in zip(*map(levels, grids), strict=True)], x, slice(None), fixed)
    for i, grid in enumerate(grids):
        one = slice(i, i + 1)
        close(together[one], two_steps(levels(grid), x[one], one, fixed[one]))


@every_solver
def test_one_level_serves_a_whole_batch(solver):
    x, noise = draws(3, 4, 3, 3), draws(3, 4, 3, 3, seed=5)
    shared = sample(denoiser(), solver, SCHEDULE, [at(700), at(300), at(50)], x, lambda: noise)
    spelt = sample(denoiser(), solver, SCHEDULE, [at(*[t] * 3) for t in (700, 300, 50)], x, lambda: noise)
    close(shared, spelt)


@every_solver
@pytest.mark.parametrize("last", [999.0, 249.0, 1.0, 0.0])
def test_a_step_to_the_clean_end_is_finite(solver, last):
    """From every last timestep a grid may have, 0 included."""
    levels = [at(last), clean_level(1, torch.float64)]
    x = sample(denoiser(), solver, SCHEDULE, levels, draws(3, 4, 3, 3), lambda: draws(3, 4, 3, 3))
    assert bool(x.isfinite().all())


@pytest.mark.parametrize("solver", [DDIM(), DDIM(eta=1.0), DPMSolverPP2M(), DPMSolverPP3M(), LCM(), TCD()])
def test_a_one_call_step_to_the_clean_end_is_the_estimate_of_x_0(solver):
    s, x = at(499), draws(3, 4, 3, 3)
    levels = solver.levels(SCHEDULE, s, clean_level(1, torch.float64))
    close(run_step(solver.step(x, levels, None, None), denoiser())[0], denoiser()(x, s))


@several_stages
@pytest.mark.parametrize("name", PREDICTIONS)
def test_a_step_of_several_stages_to_the_clean_end_is_first_order_steps(solver, inner, name):
    denoise, x = denoiser(prediction=PREDICTIONS[name]), draws(3, 4, 3, 3)
    levels = solver.levels(SCHEDULE, at(499), clean_level(1, torch.float64))
    assert [float(u.t) for u in levels[1:-1]] == pytest.approx(inner, abs=1e-9)
    expected = sample(denoise, DDIM(), SCHEDULE, levels, x, draws)
    close(run_step(solver.step(x, levels, None, None), denoise)[0], expected)


@midpoint
def test_inner_level_is_halfway_in_half_log_snr(solver):
    s, t = at(900, 500), at(700, 37)
    _, u, _ = solver.levels(SCHEDULE, s, t)
    close(u.half_log_snr, (s.half_log_snr + t.half_log_snr) / 2)
    close(u.alpha**2 + u.sigma**2, torch.ones_like(u.alpha))
    close(SCHEDULE.at(u.t, torch.float64).half_log_snr, u.half_log_snr)


@midpoint
def test_two_stage_step_is_second_order_at_any_inner_level(solver):
    """A third of the way serves as well as the midpoint: half the step, an eighth of the error."""
    x, errors = DATA.x(draws(2, 5, 2, 2), at(500)), []
    for h in (0.1, 0.05):
        s = at(500)
        u, t = (SCHEDULE.at_half_log_snr(s.half_log_snr + part * h, torch.float64) for part in (1 / 3, 1))
        x_t, _ = run_step(solver.step(x, (s, u, t), None, None), DATA.denoise)
        errors.append(float((x_t - DATA.flow(x, s, t)).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.15)


@pytest.mark.parametrize(
    "solver", [DDIM(), DDIM(eta=1.0), DPMSolverPP2M(), DPMSolverPP2S(), DPMSolverPP3M(), Heun(), TCD()]
)
def test_zero_terminal_snr_is_sampled_from_pure_noise(solver):
    schedule = schedule_from_config(STABLE_DIFFUSION | {"rescale_betas_zero_snr": True})
    levels = sampling_levels(schedule, trailing_grid(4), torch.float64)
    x = sample(denoiser(), solver, schedule, levels, draws(3, 4, 3, 3), lambda: draws(3, 4, 3, 3))
    assert bool(x.isfinite().all())


@pytest.mark.parametrize("solver", [DPMSolverPP2S(), Heun()])
def test_from_pure_noise_two_stages_are_two_first_order_steps_and_beside_it_others_stay_second_order(solver):
    schedule = schedule_from_config(STABLE_DIFFUSION | {"rescale_betas_zero_snr": True})
    denoise, x = denoiser(), draws(3, 4, 3, 3)
    s, t = schedule.at([999, 999, 499], torch.float64), schedule.at([749, 499, 249], torch.float64)
    _, u, _ = levels = solver.levels(schedule, s, t)
    assert u.t[:2].tolist() == [874, 749]
    x_t, _ = run_step(solver.step(x, levels, None, None), denoise)
    x_u, _ = run_step(DDIM().step(x, (s, u), None, None), denoise)
    first_order, _ = run_step(DDIM().step(x_u, (u, t), None, None), denoise)
    close(x_t[:2], first_order[:2])
    assert float((x_t[2] - first_order[2]).abs().max()) > 1e-6


@every_solver
@pytest.mark.parametrize(("guidance_scale", "branches"), [(1.0, 1), (7.5, 2), (torch.tensor([1.0, 2.0, 3.0]), 2)])
@pytest.mark.parametrize("steps", [1, 4, 7])
def test_nfe_per_image_is_steps_times_calls_times_branches(solver, guidance_scale, branches, steps):
    """Trap 11; counted by the denoiser, and by the network itself."""
    network = TinyNetwork()
    denoise = GuidedDenoiser(network, Eps(), text(3, 0.5), text(3, 0.0), guidance_scale)
    levels = sampling_levels(SCHEDULE, lcm_grid(steps), torch.float64)
    sample(denoise, solver, SCHEDULE, levels, draws(3, 4, 2, 2), lambda: draws(3, 4, 2, 2))
    assert denoise.evaluations.rows == sum(network.rows) == 3 * branches * solver.calls * steps
    assert set(network.rows) == {3 * branches}


@pytest.mark.parametrize(("solver", "name"), [(LCM(), "LCM"), (DDIM(eta=0.5), "DDIM"), (TCD(), "TCD")])
def test_noise_is_drawn_once_a_step_and_not_for_the_last(solver, name):
    drawn = []

    def noise():
        drawn.append(None)
        return torch.zeros(3, 4, 2, 2, dtype=torch.float64)

    levels = sampling_levels(SCHEDULE, lcm_grid(4), torch.float64)
    sample(denoiser(), solver, SCHEDULE, levels, draws(3, 4, 2, 2), noise)
    assert len(drawn) == 3
    with pytest.raises(ValueError, match=f"{name}'s step adds noise and needs a source of it"):
        run_step(solver.step(draws(3, 4, 2, 2), solver.levels(SCHEDULE, at(999), at(499)), None, None), denoiser())


@pytest.mark.parametrize("solver", [DDIM(eta=0.5), DDIM(eta=1.0), TCD(), TCD(gamma=1.0)])
def test_fresh_noise_replaces_as_much_as_it_adds(solver):
    """At a known x_0 of 0, x_t has the level's variance, sigma_t**2, whatever part of its noise is fresh."""
    s, t = at(800), at(300)
    x_s, z = s.sigma * draws(1, 4, 200, 200), draws(1, 4, 200, 200, seed=5)
    x_t, _ = run_step(solver.step(x_s, solver.levels(SCHEDULE, s, t), None, lambda: z), lambda x, level: 0 * x)
    assert float(x_t.std() / t.sigma) == pytest.approx(1, abs=0.01)


def test_without_fresh_noise_tcd_is_ddim_and_how_much_noise_is_said_by_the_order():
    s, t, x = at(800), at(300), draws(3, 4, 3, 3)
    x_t, _ = run_step(TCD(gamma=0.0).step(x, TCD(gamma=0.0).levels(SCHEDULE, s, t), None, lambda: x), denoiser())
    close(x_t, run_step(DDIM().step(x, (s, t), None, None), denoiser())[0])
    assert (DDIM().order, DDIM(eta=0.5).order) == (1, 0)


def test_on_step_hears_of_every_step_and_the_last_is_the_result():
    heard = []
    levels = sampling_levels(SCHEDULE, trailing_grid(4), torch.float64)
    x = sample(denoiser(), DDIM(), SCHEDULE, levels, draws(3, 4, 2, 2), draws, lambda *what: heard.append(what))
    assert [index for index, _, _ in heard] == [0, 1, 2, 3]
    assert [level for _, level, _ in heard] == levels[1:]
    assert heard[-1][2] is x


def test_noise_of_an_image_depends_on_its_seed_alone():
    together, alone = ImageNoise([7, 8, 9], (4, 3, 2)), ImageNoise([8], (4, 3, 2))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for _ in range(3):
        assert torch.equal(together()[1:2], alone())
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(alone(), alone())
