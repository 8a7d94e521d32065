"""The sampler equals diffusers' schedulers: the same network, noise and grid, float32."""

from itertools import pairwise

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
)
from torch import Tensor

from fewstep.diffusion.consistency import ConsistencyDenoiser, consistency
from fewstep.diffusion.guidance import Denoiser, GuidedDenoiser
from fewstep.diffusion.prediction import prediction_named
from fewstep.diffusion.sampler import ImageNoise, sample, sampling_levels
from fewstep.diffusion.schedule import NoiseLevel, NoiseSchedule, lcm_grid, schedule_from_config, trailing_grid
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
    Solver,
    run_step,
)
from tests.diffusion.gaussian import STABLE_DIFFUSION, stable_diffusion_schedule
from tests.diffusion.tiny import TinyNetwork, text

# np.array(tensor) inside diffusers' DPM-Solver schedulers, with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SCHEDULE = stable_diffusion_schedule()
NETWORK = TinyNetwork(dtype=torch.float32)
TEXT = text(2, 0.3)
SEEDS, SHAPE = (11, 12), (4, 8, 8)

both_predictions = pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])


def close(ours: Tensor, theirs: Tensor) -> None:
    """Their tables are float32, ours float64."""
    assert bool(theirs.isfinite().all())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def denoiser(prediction: str) -> Denoiser:
    return GuidedDenoiser(NETWORK, prediction_named(prediction), TEXT)


def diffusers_sample(peer, seeds=SEEDS, **options) -> Tensor:
    """The loop of every diffusers pipeline, from noise of the same generators; options are the step's."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    x = torch.stack([torch.randn(SHAPE, generator=g) for g in generators])
    for t in peer.timesteps:
        output = NETWORK(x, t.expand(len(x)), TEXT)
        draws = {"generator": generators} if isinstance(peer, LCMScheduler | TCDScheduler) else {}
        x = peer.step(output, t, x, **draws, **options).prev_sample
    return x


def our_sample(
    solver: Solver, denoise: Denoiser, levels: list[NoiseLevel], schedule: NoiseSchedule = SCHEDULE, seeds=SEEDS
) -> Tensor:
    noise = ImageNoise(seeds, SHAPE)
    return sample(denoise, solver, schedule, levels, noise(), noise)


def our_sample_through(solver: Solver, denoise: Denoiser, levels: list[NoiseLevel]) -> Tensor:
    """Steps of a solver of several stages over that many levels, the ones between being its inner levels."""
    x = ImageNoise(SEEDS, SHAPE)()
    for start in range(0, len(levels) - 1, solver.calls):
        x, _ = run_step(solver.step(x, tuple(levels[start : start + solver.calls + 1]), None, None), denoise)
    return x


def diffusers_sample_of_scaled_x(peer, calls: int) -> Tensor:
    """Their loop for the schedulers that step x / alpha, so many network calls of it; its last x, still scaled.

    It begins at our x: for some spacings their init_noise_sigma leaves out the signal's share (sigma / alpha
    instead of 1 / alpha).
    """
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    x = torch.stack([torch.randn(SHAPE, generator=g) for g in generators])
    x = x * (peer.sigmas[0] ** 2 + 1).sqrt()
    for t in peer.timesteps[:calls]:
        output = NETWORK(peer.scale_model_input(x, t), t.expand(len(x)), TEXT)
        draws = {"generator": generators} if isinstance(peer, EulerAncestralDiscreteScheduler) else {}
        x = peer.step(output, t, x, **draws).prev_sample
    return x


@both_predictions
@pytest.mark.parametrize("steps", [1, 4, 8, 20])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_ddim_equals_diffusers(prediction, steps, spacing):
    """Steps divide 1000: diffusers' DDIM goes to t - 1000 // steps, not to the next timestep of its own grid.

    set_alpha_to_one ends at the clean level; Stable Diffusion's own configs do not (trap 2, next test).
    """
    peer = DDIMScheduler(
        **STABLE_DIFFUSION,
        prediction_type=prediction,
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing=spacing,
        steps_offset=1,
    )
    peer.set_timesteps(steps)
    levels = sampling_levels(SCHEDULE, peer.timesteps.tolist())
    close(our_sample(DDIM(), denoiser(prediction), levels), diffusers_sample(peer))


@both_predictions
def test_ddim_of_stable_diffusions_own_config_ends_at_table_level_zero(prediction):
    """Trap 2."""
    peer = DDIMScheduler(
        **STABLE_DIFFUSION, prediction_type=prediction, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    peer.set_timesteps(10)
    levels = [SCHEDULE.at(float(t)) for t in [*peer.timesteps.tolist(), 0]]
    close(our_sample(DDIM(), denoiser(prediction), levels), diffusers_sample(peer))


def test_ddim_at_zero_terminal_snr_equals_diffusers():
    config = STABLE_DIFFUSION | {"rescale_betas_zero_snr": True}
    peer = DDIMScheduler(**config, prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing")
    peer.set_timesteps(8)
    schedule = schedule_from_config(config)
    levels = sampling_levels(schedule, trailing_grid(8))
    close(our_sample(DDIM(), denoiser("v_prediction"), levels, schedule), diffusers_sample(peer))


@both_predictions
@pytest.mark.parametrize("steps", [1, 2, 5, 8, 20])
@pytest.mark.parametrize("spacing", ["linspace", "trailing", "leading"])
def test_dpm_solver_pp_2m_equals_diffusers(prediction, steps, spacing):
    """First order on the first step for want of history, and on the last because it ends clean.

    In diffusers the latter is final_sigmas_type="zero", which forces a first-order last step at any number
    of steps; lower_order_final would do so below 15 steps only, and euler_at_final with sigma_min ends elsewhere.
    """
    peer = DPMSolverMultistepScheduler(
        **STABLE_DIFFUSION,
        prediction_type=prediction,
        algorithm_type="dpmsolver++",
        solver_type="midpoint",
        solver_order=2,
        final_sigmas_type="zero",
        timestep_spacing=spacing,
        steps_offset=1,
    )
    peer.set_timesteps(steps)
    levels = sampling_levels(SCHEDULE, peer.timesteps.tolist())
    close(our_sample(DPMSolverPP2M(), denoiser(prediction), levels), diffusers_sample(peer))


def test_dpm_solver_pp_2m_between_finite_levels_is_second_order_to_the_last_step_as_in_diffusers():
    """Ended at table level 0 (sigma_min), with no lowering of the order at the end."""
    peer = DPMSolverMultistepScheduler(
        **STABLE_DIFFUSION, final_sigmas_type="sigma_min", lower_order_final=False, euler_at_final=False
    )
    peer.set_timesteps(8)
    levels = [SCHEDULE.at(float(t)) for t in [*peer.timesteps.tolist(), 0]]
    close(our_sample(DPMSolverPP2M(), denoiser("epsilon"), levels), diffusers_sample(peer))


@both_predictions
@pytest.mark.parametrize("calls", [2, 4, 8, 20])
def test_dpm_solver_pp_2s_equals_diffusers(prediction, calls):
    """Their grid lists inner levels too: our step is two of theirs, orders 1 and 2 from the same x.

    The last pair is orders 1 and 1, as ours is when the step ends clean.
    """
    peer = DPMSolverSinglestepScheduler(
        **STABLE_DIFFUSION,
        prediction_type=prediction,
        algorithm_type="dpmsolver++",
        solver_type="midpoint",
        solver_order=2,
        lower_order_final=True,
        final_sigmas_type="zero",
    )
    peer.set_timesteps(calls)
    levels = sampling_levels(SCHEDULE, peer.timesteps.tolist())
    close(our_sample_through(DPMSolverPP2S(), denoiser(prediction), levels), diffusers_sample(peer))


# diffusers 0.42 still has algorithm_type="dpmsolver", and warns that it will go.
@pytest.mark.filterwarnings("ignore:.*algorithm_type `dpmsolver` is deprecated:FutureWarning")
@both_predictions
@pytest.mark.parametrize("calls", [4, 8, 20])
def test_dpm_solver_2_equals_diffusers(prediction, calls):
    """In noise prediction diffusers refuses to end clean, so both end at table level 0 (sigma_min).

    Two calls, the whole way in one step of e**6, make values near 150, whose float32 digits end at 1e-4.
    """
    peer = DPMSolverSinglestepScheduler(
        **STABLE_DIFFUSION,
        prediction_type=prediction,
        algorithm_type="dpmsolver",
        solver_type="midpoint",
        solver_order=2,
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    peer.set_timesteps(calls)
    levels = [SCHEDULE.at(float(t)) for t in [*peer.timesteps.tolist(), 0]]
    close(our_sample_through(DPMSolver2(), denoiser(prediction), levels), diffusers_sample(peer))


@both_predictions
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_lcm_equals_diffusers(prediction, steps):
    """The same noise, drawn from the same generators; c_skip and c_out included."""
    peer = LCMScheduler(**STABLE_DIFFUSION, prediction_type=prediction)
    peer.set_timesteps(steps)
    levels = sampling_levels(SCHEDULE, lcm_grid(steps))
    ours = our_sample(LCM(), ConsistencyDenoiser(denoiser(prediction)), levels)
    close(ours, diffusers_sample(peer))


@pytest.mark.parametrize("t", [0, 1, 2, 19])
def test_consistency_function_at_the_lowest_timesteps_equals_diffusers(t):
    """Where c_skip is not yet 0 nor c_out 1, which the grids of a few steps never visit."""
    peer = LCMScheduler(**STABLE_DIFFUSION)
    peer.set_timesteps(timesteps=[999, t], original_inference_steps=1000)
    x, s = ImageNoise(SEEDS, SHAPE)(), SCHEDULE.at(float(t))
    theirs = peer.step(NETWORK(x, s.t.expand(2), TEXT), peer.timesteps[1], x).denoised
    torch.testing.assert_close(consistency(denoiser("epsilon"), x, s), theirs, rtol=0, atol=1e-5)


@both_predictions
@pytest.mark.parametrize("steps", [4, 8, 20])
@pytest.mark.parametrize("spacing", ["linspace", "trailing", "leading"])
def test_heun_equals_diffusers(prediction, steps, spacing):
    """Up to the last timestep: from there diffusers goes to the clean end in one Euler step of one call.

    Two steps of linspace, the whole way in one, make values near 15, whose float32 digits end at 1e-4.
    """
    peer = HeunDiscreteScheduler(
        **STABLE_DIFFUSION, prediction_type=prediction, timestep_spacing=spacing, steps_offset=1
    )
    peer.set_timesteps(steps)
    levels = [SCHEDULE.at(float(t)) for t in peer.timesteps[::2].tolist()]
    theirs = diffusers_sample_of_scaled_x(peer, 2 * (steps - 1)) * levels[-1].alpha
    close(our_sample(Heun(), denoiser(prediction), levels), theirs)


@both_predictions
@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize("spacing", ["linspace", "trailing", "leading"])
@pytest.mark.parametrize(
    ("name", "kind"), [("euler-a", EulerAncestralDiscreteScheduler), ("euler", EulerDiscreteScheduler)]
)
def test_euler_and_its_ancestral_kind_equal_diffusers(prediction, steps, spacing, name, kind):
    """Euler's step in sigma / alpha is DDIM's, to the clean end too."""
    peer = kind(**STABLE_DIFFUSION, prediction_type=prediction, timestep_spacing=spacing, steps_offset=1)
    peer.set_timesteps(steps)
    levels = sampling_levels(SCHEDULE, peer.timesteps.tolist())
    close(our_sample(SOLVERS[name], denoiser(prediction), levels), diffusers_sample_of_scaled_x(peer, steps))


@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in version:FutureWarning")
@both_predictions
@pytest.mark.parametrize("steps", [4, 8, 20])
def test_dpm_solver_1_equals_diffusers(prediction, steps):
    peer = DPMSolverMultistepScheduler(
        **STABLE_DIFFUSION,
        prediction_type=prediction,
        algorithm_type="dpmsolver",
        solver_order=1,
        final_sigmas_type="sigma_min",
    )
    peer.set_timesteps(steps)
    levels = [SCHEDULE.at(float(t)) for t in [*peer.timesteps.tolist(), 0]]
    close(our_sample(SOLVERS["dpm-solver-1"], denoiser(prediction), levels), diffusers_sample(peer))


@pytest.mark.parametrize("config", [{"beta_schedule": "linear"}, {"beta_schedule": "squaredcos_cap_v2"}])
@pytest.mark.parametrize("steps", [4, 20])
def test_other_schedules_are_sampled_as_in_diffusers(config, steps):
    """In v, for the cosine schedule begins at alpha = 5e-5, by which an eps would be divided."""
    schedule = schedule_from_config(config)
    levels = sampling_levels(schedule, trailing_grid(steps))
    options = config | {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    peers = (
        (DDIM(), DDIMScheduler(**options, clip_sample=False)),
        (DPMSolverPP2M(), DPMSolverMultistepScheduler(**options, final_sigmas_type="zero")),
    )
    for solver, peer in peers:
        peer.set_timesteps(steps)
        assert peer.timesteps.tolist() == trailing_grid(steps)
        close(our_sample(solver, denoiser("v_prediction"), levels, schedule), diffusers_sample(peer))


@both_predictions
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_eta_equals_diffusers(prediction, eta):
    peer = DDIMScheduler(**STABLE_DIFFUSION, prediction_type=prediction, clip_sample=False, steps_offset=1)
    peer.set_timesteps(10)
    noise = ImageNoise(SEEDS, SHAPE)
    x = noise()
    for t in peer.timesteps:
        output = NETWORK(x, t.expand(len(x)), TEXT)
        x = peer.step(output, t, x, eta=eta, variance_noise=noise()).prev_sample
    levels = sampling_levels(SCHEDULE, peer.timesteps.tolist())
    close(our_sample(DDIM(eta), denoiser(prediction), levels), x)


@both_predictions
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_tcd_equals_diffusers(prediction, steps, gamma):
    """Their last step ends at table level 0, ours here too; the sampler's own end is the clean level (trap 2)."""
    peer = TCDScheduler(**STABLE_DIFFUSION, prediction_type=prediction, clip_sample=False)
    peer.set_timesteps(steps)
    assert peer.timesteps.tolist() == lcm_grid(steps)
    levels = [SCHEDULE.at(float(t)) for t in [*lcm_grid(steps), 0]]
    close(our_sample(TCD(gamma), denoiser(prediction), levels), diffusers_sample(peer, eta=gamma))


@both_predictions
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("spacing", ["linspace", "trailing", "leading"])
def test_dpm_solver_pp_3m_starts_and_ends_as_diffusers(prediction, steps, spacing):
    """From four steps on ours differs: their third-order update takes half the second difference of x_0.

    By the measured law theirs is second order, ours third (test_order); the next test adds the missing half.
    lower_order_final is off: below 15 steps it would make the last but one step second order.
    """
    peer = DPMSolverMultistepScheduler(
        **STABLE_DIFFUSION,
        prediction_type=prediction,
        solver_order=3,
        lower_order_final=False,
        final_sigmas_type="zero",
        timestep_spacing=spacing,
        steps_offset=1,
    )
    peer.set_timesteps(steps)
    levels = sampling_levels(SCHEDULE, peer.timesteps.tolist())
    close(our_sample(DPMSolverPP3M(), denoiser(prediction), levels), diffusers_sample(peer))


class WholeSecondDifference(DPMSolverMultistepScheduler):
    """diffusers' 3M with the second difference of x_0 whole: D2 taken twice."""

    def multistep_dpm_solver_third_order_update(self, model_output_list, *args, sample, noise=None, **kwargs):
        x_t = super().multistep_dpm_solver_third_order_update(model_output_list, sample=sample, noise=noise)
        levels = [self._sigma_to_alpha_sigma_t(self.sigmas[self.step_index + i]) for i in (1, 0, -1, -2)]
        half_log_snr = [(alpha / sigma).log() for alpha, sigma in levels]
        h, h_0, h_1 = (a - b for a, b in pairwise(half_log_snr))
        m_2, m_1, m_0 = model_output_list
        d_2 = ((m_0 - m_1) * h / h_0 - (m_1 - m_2) * h / h_1) * h / (h_0 + h_1)
        return x_t - levels[0][0] * ((torch.exp(-h) - 1 + h) / h**2 - 0.5) * d_2


@both_predictions
@pytest.mark.parametrize("steps", [4, 8, 20])
def test_dpm_solver_pp_3m_equals_diffusers_with_the_second_difference_whole(prediction, steps):
    peer = WholeSecondDifference(
        **STABLE_DIFFUSION,
        prediction_type=prediction,
        solver_order=3,
        lower_order_final=False,
        final_sigmas_type="zero",
    )
    peer.set_timesteps(steps)
    levels = sampling_levels(SCHEDULE, peer.timesteps.tolist())
    close(our_sample(DPMSolverPP3M(), denoiser(prediction), levels), diffusers_sample(peer))


@pytest.mark.filterwarnings("ignore:.*algorithm_type `dpmsolver` is deprecated:FutureWarning")
@both_predictions
@pytest.mark.parametrize("calls", [6, 9, 21])
def test_dpm_solver_3_equals_diffusers(prediction, calls):
    """Algorithm 5 takes its second inner level by diffusers' "heun" formula and its end by their "midpoint".

    diffusers has one solver_type for both, so it is switched between the calls. The inner levels are their
    grid's, as for DPM-Solver-2, and the end is table level 0.
    """
    peer = DPMSolverSinglestepScheduler(
        **STABLE_DIFFUSION,
        prediction_type=prediction,
        algorithm_type="dpmsolver",
        solver_order=3,
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    peer.set_timesteps(calls)
    x = ImageNoise(SEEDS, SHAPE)()
    for i, t in enumerate(peer.timesteps):
        peer.register_to_config(solver_type="heun" if i % 3 == 1 else "midpoint")
        x = peer.step(NETWORK(x, t.expand(len(x)), TEXT), t, x).prev_sample
    levels = [SCHEDULE.at(float(t)) for t in [*peer.timesteps.tolist(), 0]]
    close(our_sample_through(DPMSolver3(), denoiser(prediction), levels), x)
