"""Classifier-free guidance: one batched call, and where guiding x_0 agrees with Algorithm 1."""

import pytest
import torch

from fewstep.diffusion.guidance import Conditioning, GuidedDenoiser, concatenate
from fewstep.diffusion.prediction import PREDICTIONS
from fewstep.diffusion.solvers import DDIM, DPMSolver2, DPMSolverPP2S, run_step
from tests.diffusion.gaussian import draws, slope, stable_diffusion_schedule
from tests.diffusion.tiny import TinyNetwork, text

SCHEDULE = stable_diffusion_schedule()
LEVEL = SCHEDULE.at([900, 500, 20], torch.float64)
X = draws(3, 4, 3, 3)
TEXT, EMPTY = text(3, 0.5), text(1, -0.5).expand(3)
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def guided(prediction, guidance_scale, network=None) -> GuidedDenoiser:
    return GuidedDenoiser(network or TinyNetwork(), prediction, TEXT, EMPTY, guidance_scale)


@every_prediction
def test_both_branches_in_one_batch_equal_two_calls(prediction):
    network = TinyNetwork()
    output, output_empty = network(X, LEVEL.t, TEXT), network(X, LEVEL.t, EMPTY)
    expected = prediction.to_x_0(output_empty + 7.5 * (output - output_empty), X, LEVEL)
    close(guided(prediction, 7.5)(X, LEVEL), expected)


@every_prediction
def test_guiding_x_0_is_guiding_the_output(prediction):
    """Each conversion is affine with the same x_t, and the weights g and 1 - g sum to one."""
    x_0 = GuidedDenoiser(TinyNetwork(), prediction, TEXT)(X, LEVEL)
    x_0_empty = GuidedDenoiser(TinyNetwork(), prediction, EMPTY)(X, LEVEL)
    torch.testing.assert_close(
        guided(prediction, 7.5)(X, LEVEL), x_0_empty + 7.5 * (x_0 - x_0_empty), rtol=1e-11, atol=1e-11
    )


@every_prediction
def test_a_scale_per_image_equals_the_scales_one_by_one(prediction):
    scales = [1.0, 2.5, 14.0]
    together = guided(prediction, torch.tensor(scales, dtype=torch.float64))(X, LEVEL)
    for i, scale in enumerate(scales):
        close(together[i], guided(prediction, scale)(X, LEVEL)[i])


@every_prediction
def test_scale_zero_is_the_empty_branch_and_scale_one_the_conditioned(prediction):
    close(guided(prediction, 0.0)(X, LEVEL), GuidedDenoiser(TinyNetwork(), prediction, EMPTY)(X, LEVEL))
    close(guided(prediction, torch.ones(3))(X, LEVEL), guided(prediction, 1.0)(X, LEVEL))


def test_scale_one_runs_one_row_an_image_and_needs_no_empty_text():
    network = TinyNetwork()
    denoise = GuidedDenoiser(network, PREDICTIONS["epsilon"], TEXT)
    denoise(X, LEVEL)
    assert network.rows == [3]
    assert denoise.evaluations.rows == 3


def test_guidance_runs_two_rows_an_image_in_one_call():
    network = TinyNetwork()
    denoise = guided(PREDICTIONS["epsilon"], 2.0, network)
    denoise(X, LEVEL)
    denoise(X, LEVEL)
    assert network.rows == [6, 6]
    assert denoise.evaluations.rows == 12


@pytest.mark.parametrize("guidance_scale", [0.0, 2.0, torch.ones(3)])
def test_guidance_without_an_empty_text_is_refused(guidance_scale):
    denoise = GuidedDenoiser(TinyNetwork(), PREDICTIONS["epsilon"], TEXT, None, guidance_scale)
    with pytest.raises(ValueError, match="guidance needs the empty conditioning"):
        denoise(X, LEVEL)


def test_one_level_is_told_to_every_row():
    level = SCHEDULE.at(259.0, torch.float64)
    assert torch.equal(
        guided(PREDICTIONS["epsilon"], 2.0)(X, level), guided(PREDICTIONS["epsilon"], 2.0)(X, level.expand(3))
    )


def test_conditioning_is_cut_joined_and_expanded_along_the_batch():
    assert torch.equal(concatenate([TEXT[:1], TEXT[1:]]).text, TEXT.text)
    assert torch.equal(Conditioning(EMPTY.text[:1]).expand(3).text, EMPTY.text)


def guided_step(psi, prediction, w, s, t):
    """Psi along the guided ODE, and Algorithm 1's sum of two steps, (1 + w) Psi(c) - w Psi(empty).

    w: (B, 1, 1, 1), LCM's own: guidance_scale = 1 + w (trap 1).
    """

    def step(denoise):
        return run_step(psi.step(X, psi.levels(SCHEDULE, s, t), None, None), denoise)[0]

    with_text = step(GuidedDenoiser(TinyNetwork(), prediction, TEXT))
    without = step(GuidedDenoiser(TinyNetwork(), prediction, EMPTY))
    return step(guided(prediction, 1 + w)), (1 + w) * with_text - w * without


W = torch.tensor([0.5, 7.5, 14.0], dtype=torch.float64).view(3, 1, 1, 1)


@every_prediction
def test_for_ddim_guiding_x_0_is_algorithm_1(prediction):
    """Trap 8."""
    ours, algorithm_1 = guided_step(DDIM(), prediction, W, LEVEL, SCHEDULE.at([759, 480.5, 0], torch.float64))
    torch.testing.assert_close(ours, algorithm_1, rtol=1e-11, atol=1e-11)


@every_prediction
@pytest.mark.parametrize("psi", [DPMSolver2(), DPMSolverPP2S()])
def test_for_two_stages_guiding_x_0_agrees_with_algorithm_1_at_first_order_only(psi, prediction):
    """Their difference is not 0, and falls as h**2 (trap 8)."""
    sizes, differences = [2.0**-k for k in (6, 7, 8, 9)], []
    for h in sizes:
        t = SCHEDULE.at_half_log_snr(LEVEL.half_log_snr + h, torch.float64)
        ours, algorithm_1 = guided_step(psi, prediction, W, LEVEL, t)
        differences.append(float((ours - algorithm_1).square().mean().sqrt()))
    assert min(differences) > 1e-9
    assert slope(sizes, differences) == pytest.approx(2, abs=0.15)
