"""Noise levels and grids: equal to diffusers, and the laws of the schedule."""

from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, LCMScheduler
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fewstep.diffusion.sampler import sampling_levels
from fewstep.diffusion.schedule import (
    NoiseSchedule,
    clean_level,
    lcm_grid,
    leading_grid,
    level_from_half_log_snr,
    linspace_grid,
    schedule_from_config,
    skipping_grid,
    trailing_grid,
)
from fewstep.errors import FewstepError, UsageError
from tests.diffusion.gaussian import STABLE_DIFFUSION, stable_diffusion_schedule

law = settings(max_examples=60, deadline=None)
GRIDS = {"trailing": trailing_grid, "leading": leading_grid, "linspace": linspace_grid}
SCHEDULE = stable_diffusion_schedule()


@pytest.mark.parametrize("peer", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"beta_schedule": "linear", "beta_start": 0.0005, "beta_end": 0.03},
        STABLE_DIFFUSION,
        {"beta_schedule": "squaredcos_cap_v2"},
        STABLE_DIFFUSION | {"num_train_timesteps": 250},
        {"trained_betas": [0.01, 0.02, 0.04, 0.3], "num_train_timesteps": 4},
        STABLE_DIFFUSION | {"rescale_betas_zero_snr": True},
        {"beta_schedule": "linear", "rescale_betas_zero_snr": True},
    ],
    ids=lambda config: "-".join(map(str, config.values())) or "defaults",
)
def test_alpha_bar_equals_diffusers(peer, config):
    ours = schedule_from_config(config).alpha_bar
    theirs = peer(**config).alphas_cumprod.double()
    if config.get("rescale_betas_zero_snr"):
        if peer is DDPMScheduler:
            theirs[-1] = 0  # DDPMScheduler keeps 2**-24 there, so as never to divide by zero
        assert ours[-1] == 0
        assert schedule_from_config(config).zero_terminal_snr
    # Theirs is a float32 cumulative product of up to 1000 factors, ours a float64 one.
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_stable_diffusion_ends_at_table_level_zero_not_at_the_clean_end():
    """Trap 2."""
    lowest = SCHEDULE.at(0.0, torch.float64)
    assert float(lowest.alpha**2) == pytest.approx(1 - STABLE_DIFFUSION["beta_start"], abs=1e-12)
    assert float(lowest.sigma) > 0
    assert bool(clean_level().half_log_snr.isposinf())


def test_level_at_every_whole_timestep_is_the_table():
    level = SCHEDULE.at(torch.arange(1000), torch.float64)
    assert level.t.tolist() == list(range(1000))
    torch.testing.assert_close(level.alpha.view(-1) ** 2, SCHEDULE.alpha_bar, rtol=1e-13, atol=0)
    torch.testing.assert_close(level.half_log_snr.view(-1), SCHEDULE.half_log_snr(), rtol=1e-11, atol=1e-11)


@law
@given(st.lists(st.floats(0, 999), min_size=1, max_size=8))
def test_every_level_preserves_variance(timesteps):
    level = SCHEDULE.at(timesteps, torch.float64)
    assert level.alpha.shape == level.sigma.shape == (len(timesteps), 1, 1, 1)
    torch.testing.assert_close(level.alpha**2 + level.sigma**2, torch.ones_like(level.alpha), rtol=0, atol=1e-15)


@law
@given(st.floats(0, 999), st.floats(0, 999))
def test_levels_between_whole_timesteps_are_monotone_in_time(one, other):
    low, high = sorted((one, other))
    a, b = SCHEDULE.at(low, torch.float64), SCHEDULE.at(high, torch.float64)
    assert float(a.half_log_snr) >= float(b.half_log_snr)
    if high - low > 1e-6:
        assert float(a.half_log_snr) > float(b.half_log_snr)
        assert float(a.sigma) < float(b.sigma)


@law
@given(st.floats(0, 999))
def test_half_log_snr_is_inverted_to_the_timestep_it_came_from(t):
    level = SCHEDULE.at(t, torch.float64)
    back = SCHEDULE.at_half_log_snr(level.half_log_snr, torch.float64)
    assert float(back.t) == pytest.approx(t, abs=1e-8)
    torch.testing.assert_close(back.alpha, level.alpha, rtol=1e-12, atol=0)


@law
@given(st.floats(-2.6, 3.5))
def test_timestep_is_inverted_to_the_half_log_snr_it_came_from(wanted):
    level = SCHEDULE.at_half_log_snr(torch.tensor([wanted], dtype=torch.float64), torch.float64)
    assert float(level.half_log_snr) == pytest.approx(wanted, abs=1e-12)
    assert float(SCHEDULE.at(level.t, torch.float64).half_log_snr) == pytest.approx(wanted, abs=1e-10)


def test_timestep_is_clamped_outside_the_table_and_the_level_is_not():
    wanted = torch.tensor([-50.0, 50.0, torch.inf], dtype=torch.float64)
    level = SCHEDULE.at_half_log_snr(wanted, torch.float64)
    assert level.t.tolist() == [999, 0, 0]
    assert bool(level.alpha.isfinite().all())
    assert float(level.sigma[2]) == 0


@law
@given(st.floats(-6, 6))
def test_variance_preserving_level_has_the_half_log_snr_asked(wanted):
    level = level_from_half_log_snr(torch.zeros(1), torch.tensor([wanted], dtype=torch.float64), torch.float64)
    assert float(level.half_log_snr) == pytest.approx(wanted, abs=1e-9)


def test_zero_terminal_snr_level_is_pure_noise():
    schedule = schedule_from_config(STABLE_DIFFUSION | {"rescale_betas_zero_snr": True})
    level = schedule.at([999.0, 998.0])
    assert level.alpha.view(-1)[0] == 0
    assert level.sigma.view(-1)[0] == 1
    assert not bool(torch.cat([level.alpha, level.sigma]).isnan().any())
    assert not SCHEDULE.zero_terminal_snr


def test_levels_expand_over_a_batch():
    level = SCHEDULE.at(500.0).expand(3)
    assert [tuple(x.shape) for x in level] == [(3,), (3, 1, 1, 1), (3, 1, 1, 1)]


def test_lcm_trains_on_every_twentieth_timestep():
    """Trap 9."""
    assert skipping_grid(20) == list(range(19, 1000, 20))


def test_lcm_grid_of_four_steps():
    assert lcm_grid(4) == [999, 759, 499, 259]


def test_quadratic_grid_is_the_training_grid_by_squares():
    """Of its 50 points, those nearest to 1, (3/4)^2, (2/4)^2 and (1/4)^2 of the way up."""
    assert lcm_grid(4, quadratic=True) == [999, 559, 239, 59]
    assert lcm_grid(2, quadratic=True) == [999, 239]
    assert lcm_grid(1, quadratic=True) == [999]


@law
@given(st.integers(1, 60), st.integers(1, 100), st.integers(100, 1000))
def test_quadratic_grid_descends_through_the_training_grid(steps, k, T):
    points = skipping_grid(k, T)
    assume(steps <= len(points))
    grid = lcm_grid(steps, k, T, quadratic=True)
    assert len(grid) == steps
    assert all(s > t for s, t in pairwise(grid))
    assert set(grid) <= set(points)
    assert grid[0] == points[-1]
    assert all(s <= t for s, t in zip(grid, lcm_grid(steps, k, T), strict=True))  # nowhere earlier than evenly


@pytest.mark.parametrize("quadratic", [False, True])
def test_the_training_grid_is_never_left(quadratic):
    assert lcm_grid(10, 100, quadratic=quadratic) == skipping_grid(100)[::-1]
    with pytest.raises(UsageError, match=r"^steps = 11 is more than the 10 timesteps of the training grid, k = 100"):
        lcm_grid(11, 100, quadratic=quadratic)
    with pytest.raises(UsageError, match=r"^skipping step k = 100 is outside 1 to 60"):
        lcm_grid(1, 100, 60, quadratic)


@pytest.mark.parametrize("steps", [*range(1, 9), 50])
def test_lcm_grid_equals_diffusers(steps):
    peer = LCMScheduler()
    peer.set_timesteps(steps)
    assert lcm_grid(steps) == peer.timesteps.tolist()


@pytest.mark.parametrize("strength", [0.3, 0.5, 0.8])
def test_lcm_grid_of_a_partial_strength_equals_diffusers(strength):
    peer = LCMScheduler()
    peer.set_timesteps(4, strength=strength)
    assert lcm_grid(4, T=int(1000 * strength)) == peer.timesteps.tolist()


@pytest.mark.parametrize("spacing", GRIDS)
@pytest.mark.parametrize("steps", [2, 3, 4, 5, 7, 8, 10, 16, 20, 25, 30, 40, 50, 100])
def test_grid_equals_diffusers(spacing, steps):
    """At one step diffusers' linspace is [0], all but clean already; ours starts at T - 1."""
    peer = DDIMScheduler(timestep_spacing=spacing, steps_offset=1)
    peer.set_timesteps(steps)
    assert GRIDS[spacing](steps) == peer.timesteps.tolist()


@pytest.mark.parametrize("offset", [0, 1])
def test_leading_grid_equals_diffusers_at_every_offset(offset):
    peer = DDIMScheduler(timestep_spacing="leading", steps_offset=offset)
    peer.set_timesteps(20)
    assert leading_grid(20, offset=offset) == peer.timesteps.tolist()


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_grid_differs_from_diffusers_only_where_a_timestep_is_halfway(spacing):
    """Halves go to the even neighbour in ours and wherever accumulated float error falls in theirs.

    Theirs is now and then one too long in trailing (a last timestep of -1): np.arange with a float step.
    """
    for steps in range(2, 130):
        peer = DDIMScheduler(timestep_spacing=spacing)
        peer.set_timesteps(steps)
        ours, theirs = GRIDS[spacing](steps), peer.timesteps.tolist()[:steps]
        exact = [1000 - i * 1000 / steps - 1 for i in range(steps)]
        if spacing == "linspace":
            exact = [999 - i * 999 / (steps - 1) for i in range(steps)]
        for a, b, x in zip(ours, theirs, exact, strict=True):
            assert a == b or abs(x % 1 - 0.5) < 1e-6


@law
@given(st.integers(1, 1000).flatmap(lambda T: st.tuples(st.integers(1, T), st.just(T))))
def test_grid_descends_inside_the_range_at_the_length_asked(steps_and_range):
    steps, T = steps_and_range
    grids = {name: grid(steps, T) for name, grid in GRIDS.items()}
    grids["leading from 0"] = leading_grid(steps, T, offset=0)
    grids["lcm"] = lcm_grid(steps, T // steps, T)
    for name, grid in grids.items():
        assert len(grid) == steps, name
        assert all(a > b for a, b in pairwise(grid)), name
        assert T > grid[0] >= grid[-1] >= 0, name


@law
@given(st.integers(1, 100), st.integers(0, 900))
def test_skipping_grid_steps_by_k_and_stays_on_the_table(k, extra):
    T = k + extra
    grid = skipping_grid(k, T)
    assert grid[0] == k - 1
    assert all(b - a == k for a, b in pairwise(grid))
    assert T - k <= grid[-1] <= T - 1


@pytest.mark.parametrize("grid", [*GRIDS.values(), lcm_grid])
@pytest.mark.parametrize("steps", [-1, 0, 1001])
def test_grid_of_an_impossible_length_is_refused(grid, steps):
    with pytest.raises(UsageError, match=rf"steps = {steps} is outside 1 to 1000") as refused:
        grid(steps)
    assert "hint: 4 is usual" in str(refused.value)


@pytest.mark.parametrize("k", [0, 1001])
def test_impossible_skipping_step_is_refused(k):
    with pytest.raises(UsageError, match=rf"skipping step k = {k} is outside 1 to 1000"):
        skipping_grid(k)


def test_unknown_beta_schedule_is_refused_and_the_known_ones_are_named():
    with pytest.raises(FewstepError, match="unknown beta_schedule 'sigmoid'") as refused:
        schedule_from_config({"beta_schedule": "sigmoid"})
    assert refused.value.hint == "known ones: linear, scaled_linear, squaredcos_cap_v2"


@pytest.mark.parametrize(
    "config",
    [
        {"beta_start": 0.0, "beta_end": 0.0},
        {"beta_start": -0.1, "beta_end": 0.1},
        {"beta_start": 0.1, "beta_end": 1.5},
        {"trained_betas": [0.1]},
        {"trained_betas": [0.1, float("nan"), 0.1]},
        {"trained_betas": [[0.1, 0.2], [0.1, 0.2]]},
    ],
)
def test_betas_that_are_no_noise_schedule_are_refused(config):
    with pytest.raises(FewstepError, match="the noise schedule's alpha_bar does not decrease inside"):
        schedule_from_config(config)


def test_alpha_bar_that_rises_is_refused():
    with pytest.raises(FewstepError, match="does not decrease") as refused:
        NoiseSchedule(torch.tensor([0.9, 0.5, 0.6], dtype=torch.float64))
    assert refused.value.hint == "check beta_start, beta_end and beta_schedule"


def test_sampling_levels_descend_and_end_clean():
    levels = sampling_levels(SCHEDULE, [999, 499, 0], torch.float64)
    assert [float(level.t) for level in levels] == [999, 499, 0, 0]
    snr = [float(level.half_log_snr) for level in levels]
    assert snr == sorted(snr)
    assert snr[-1] == torch.inf
    with pytest.raises(ValueError, match="timesteps must descend"):
        sampling_levels(SCHEDULE, [499, 499])
