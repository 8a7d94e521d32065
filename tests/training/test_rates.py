"""The learning rate is that of diffusers' schedules; epochs become steps."""

import pytest
import torch
from diffusers.optimization import get_scheduler

from fewstep.configs import TrainingConfig, build
from fewstep.training.rates import learning_rate, steps_in

STEPS, WARMUP, PEAK = 60, 10, 1e-3


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("constant_with_warmup", {"decay": "constant"}),
        ("linear", {"decay": "linear"}),
        ("polynomial", {"decay": "polynomial"}),
        ("polynomial", {"decay": "polynomial", "power": 2.5}),
        ("cosine", {"decay": "cosine"}),
        ("cosine_with_restarts", {"decay": "cosine", "cycles": 3}),
    ],
)
def test_the_rates_are_those_of_diffusers(name: str, options: dict[str, object]) -> None:
    """After the warm-up, which begins above 0 here."""
    config = build(TrainingConfig, out="o", train_steps=STEPS, warmup=WARMUP, learning_rate=PEAK, **options)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    theirs = get_scheduler(
        name,
        optimizer,
        num_warmup_steps=WARMUP,
        num_training_steps=STEPS,
        num_cycles=config.cycles,
        power=config.power,
    )
    for step in range(STEPS):
        if step >= WARMUP:
            assert learning_rate(config, step) == pytest.approx(theirs.get_last_lr()[0], abs=2e-7), step
        optimizer.step()
        theirs.step()


def test_the_first_steps_warm_up() -> None:
    config = build(TrainingConfig, out="o", train_steps=STEPS, warmup=WARMUP, learning_rate=PEAK)
    rates = [learning_rate(config, step) for step in range(WARMUP + 1)]
    assert rates == pytest.approx([PEAK * min(i / WARMUP, 1) for i in range(1, WARMUP + 2)])


@pytest.mark.parametrize(("epochs", "accumulate", "steps"), [(None, 1, 7), (1, 1, 3), (2, 1, 5), (2, 2, 3), (3, 1, 8)])
def test_epochs_end_in_the_step_that_visits_the_last_sample(epochs: int, accumulate: int, steps: int) -> None:
    given = {"train_steps": 7} if epochs is None else {"epochs": epochs}
    config = build(TrainingConfig, out="o", batch_size=4, accumulate=accumulate, **given)
    assert steps_in(config, 10) == steps
