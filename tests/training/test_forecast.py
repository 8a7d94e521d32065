"""Forecasts: what a step takes on stand-ins is what it takes."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fewstep.configs import DistillConfig, build
from fewstep.models.load import load_model
from fewstep.training.draws import SampleId
from fewstep.training.forecast import batch_of, forecast, probed, take_step, traced_step
from fewstep.training.meter import Meter, stand_ins
from fewstep.training.methods import METHODS, method_of
from fewstep.training.networks import STUDENT, networks_of
from tests.training.test_methods import Latents

CPU = torch.device("cpu")


def config_of(model: Path, **options: object) -> DistillConfig:
    common = {"model": str(model), "data": "d", "out": "o", "rank": 2, "device": "cpu", "batch_size": 2}
    return build(DistillConfig, **(common | options))


def test_memory_is_counted_while_it_is_alive() -> None:
    with Meter() as meter:
        x = torch.zeros(1000)
        y = x[10:]
        assert meter.live == 4000
        z = y * 2
        assert (meter.live, meter.peak) == (4000 + 3960, 4000 + 3960)
        del x, z
        assert meter.live == 4000  # y is a part of x
        del y
    assert (meter.live, meter.peak) == (0, 7960)


def test_stand_ins_take_no_memory_and_modules_of_them_can_be_converted() -> None:
    convert = nn.Module._apply
    with stand_ins() as meter:
        layer = nn.Linear(10**6, 10**6).to(torch.bfloat16)
        assert meter.live == 2 * (10**12 + 10**6)
        assert layer(torch.zeros(1, 10**6, dtype=torch.bfloat16)).shape == (1, 10**6)
    assert nn.Module._apply is convert


OPTIONS = [{}, {"precision": "bf16"}, {"frozen_weights": "int8"}, {"gradient_checkpointing": True}, {"full": True}]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda x: "-".join(map(str, x)) or "lora")
def test_a_step_on_stand_ins_takes_what_a_step_takes(tiny_model_folder: Path, options: dict[str, object]) -> None:
    config = config_of(tiny_model_folder, **options)
    model = load_model(str(tiny_model_folder))
    step = traced_step(method_of(config)(load_model(str(tiny_model_folder), device="meta"), config), CPU)
    method = method_of(config)(model, config)
    with networks_of(model, config, method.with_teacher, own=True) as networks:
        players = method.players(networks)
        batch = Latents().batch([SampleId(0, 0, 0), SampleId(0, 0, 1)], CPU)
        with Meter() as meter, FlopCounterMode(display=False) as counter:
            take_step(players[STUDENT], batch, config, CPU)
        parameters = players[STUDENT].trainable.parameters.values()
        before = sum(x.nbytes for x in model.unet.state_dict().values()) + sum(p.nbytes for p in parameters)
        assert step.trained == sum(p.numel() for p in parameters)
    assert step.flops == counter.get_total_flops()
    real = before + 4 * step.averaged + meter.peak
    assert step.peak == pytest.approx(
        real, rel=0.1, abs=100 * 5056 if "gradient_checkpointing" in options else None
    )  # 5,056: a generator's state, of checkpointing


@pytest.mark.parametrize("name", [name for name in METHODS if name != "lcf"])
def test_every_method_has_a_forecast(name: str, tiny_model_folder: Path) -> None:
    options = {"frozen_weights": "nf4"} if name == "tcd" else {}
    config = config_of(tiny_model_folder, method=name, **options)
    found = forecast(config, method_of(config), 100)
    assert found.peak == max(found.memory.values()) > 100 * 2**20
    assert found.step_s is None
    assert found.trained > 0


def test_operations_are_timed_by_kind(tiny_model_folder: Path) -> None:
    with stand_ins() as meter:
        x = torch.zeros(300, 300)
        for _ in range(10):
            y = x @ x
        y.add_(1)
    assert sorted(meter.counts.values()) == [1, 1, 10]
    assert 0 < probed(meter, 1.0) < 10
    assert probed(meter, 0.0) < 1  # no time to measure anything


def test_a_batch_has_the_shapes_of_the_run(tiny_model_folder: Path) -> None:
    config = config_of(tiny_model_folder)
    model = load_model(str(tiny_model_folder), device="meta")
    made, real = batch_of(model, config, CPU), Latents().batch([SampleId(0, 0, 0), SampleId(0, 0, 1)], CPU)
    assert made.x_0.shape == real.x_0.shape
    assert made.conditioning.text.shape == real.conditioning.text.shape
