"""eps, v and x_0 are three names of one thing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.diffusion.prediction import PREDICTIONS, eps_from_x_0, prediction_named
from fewstep.errors import FewstepError
from tests.diffusion.gaussian import draws, stable_diffusion_schedule

law = settings(max_examples=40, deadline=None)
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS)
SCHEDULE = stable_diffusion_schedule()


def noisy(t: float, seed: int):
    """x_0, eps, x_t and the level of x_t."""
    level = SCHEDULE.at([t, 999 - t], torch.float64)
    x_0, eps = draws(2, 3, 4, 4, seed=seed), draws(2, 3, 4, 4, seed=seed + 1)
    return x_0, eps, level.alpha * x_0 + level.sigma * eps, level


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@every_prediction
@law
@given(t=st.floats(0, 999), seed=st.integers(0, 1000))
def test_aim_stands_for_the_x_0_it_was_made_from(prediction, t, seed):
    x_0, eps, x_t, level = noisy(t, seed)
    close(prediction.to_x_0(prediction.aim(x_0, eps, level), x_t, level), x_0)


@every_prediction
@law
@given(t=st.floats(0, 999), seed=st.integers(0, 1000))
def test_any_clean_estimate_survives_the_round_trip(prediction, t, seed):
    _, _, x_t, level = noisy(t, seed)
    estimate = draws(2, 3, 4, 4, seed=seed + 2)
    close(prediction.to_x_0(prediction.from_x_0(estimate, x_t, level), x_t, level), estimate)


@every_prediction
@law
@given(t=st.floats(0, 999), seed=st.integers(0, 1000))
def test_from_x_0_of_the_true_x_0_is_the_aim(prediction, t, seed):
    x_0, eps, x_t, level = noisy(t, seed)
    # Dividing by sigma (down to 0.029 at the table's lowest level) takes a digit or two off.
    actual, aim = prediction.from_x_0(x_0, x_t, level), prediction.aim(x_0, eps, level)
    torch.testing.assert_close(actual, aim, rtol=1e-12, atol=1e-12)
    close(eps_from_x_0(x_0, x_t, level), eps)


@pytest.mark.parametrize("one", PREDICTIONS.values(), ids=PREDICTIONS)
@pytest.mark.parametrize("other", PREDICTIONS.values(), ids=PREDICTIONS)
@law
@given(t=st.floats(0, 999), seed=st.integers(0, 1000))
def test_a_conversion_through_another_prediction_comes_back(one, other, t, seed):
    _, _, x_t, level = noisy(t, seed)
    output = draws(2, 3, 4, 4, seed=seed + 3)
    there = other.from_x_0(one.to_x_0(output, x_t, level), x_t, level)
    back = one.from_x_0(other.to_x_0(there, x_t, level), x_t, level)
    close(back, output)


def test_v_prediction_stays_finite_at_zero_terminal_snr():
    level = SCHEDULE.at([999.0], torch.float64)
    level = level._replace(alpha=torch.zeros_like(level.alpha), sigma=torch.ones_like(level.sigma))
    x_0, eps = draws(1, 3, 2, 2), draws(1, 3, 2, 2, seed=1)
    v = prediction_named("v_prediction")
    close(v.to_x_0(v.aim(x_0, eps, level), eps, level), x_0)


def test_unknown_prediction_type_is_refused_and_the_known_ones_are_named():
    with pytest.raises(FewstepError, match="unknown prediction_type 'flow'") as refused:
        prediction_named("flow")
    assert refused.value.hint == "known ones: epsilon, v_prediction, sample"
