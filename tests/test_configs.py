"""Configs: frozen, complete, with ranges whose refusals name the option as typed."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from fewstep.configs import (
    DistillConfig,
    DoctorConfig,
    FinetuneConfig,
    SampleConfig,
    TrainingConfig,
    build,
    option_name,
)
from fewstep.errors import UsageError

SAMPLE = {"prompts": ("a cat",), "model": "m"}
DISTILL = {"model": "m", "data": "d", "out": "o"}


def test_defaults_are_the_documented_ones():
    config = build(SampleConfig, **SAMPLE)
    assert (config.solver, config.steps, config.guidance_scale, config.seed, config.strength) == (
        "auto",
        None,
        None,
        0,
        None,
    )
    distill = build(DistillConfig, **DISTILL)
    assert (distill.method, distill.psi, distill.k, distill.rank, distill.ema) == ("lcd", "ddim", 20, 64, 0.95)
    assert distill.guidance_scale == 1 + 7.5  # the report's w
    assert build(FinetuneConfig, **DISTILL).drop_captions == 0.1


def test_help_is_wrapped_where_it_is_shown():
    told = [field.description for field in DistillConfig.model_fields.values()]
    assert max(map(len, told)) > 200  # some docstrings have several lines
    assert not any("\n" in text for text in told)


def test_configs_do_not_change():
    config = build(SampleConfig, **SAMPLE)
    with pytest.raises(ValidationError, match="frozen"):
        config.steps = 3


def test_configs_survive_json():
    config = build(DistillConfig, **DISTILL, guidance_scale_max=9.5, init_lora="x.safetensors")
    assert build(DistillConfig, **json.loads(config.model_dump_json())) == config
    assert config.data == Path("d")


@pytest.mark.parametrize(
    ("field", "inside", "outside"),
    [
        ("steps", (1, 1000), (0, 1001, 2.5, "four")),
        ("guidance_scale", (0, 50), (-0.1, 50.1, float("nan"), "high")),
        ("seed", (0, 2**63 - 1), (-1, 2**63)),
        ("count", (1, 10000), (0, 10001)),
        ("batch_size", (1, 1024), (0, 1025)),
        ("width", (8, 8192), (7, 8193)),
        ("height", (8, 8192), (7, 8193)),
        ("strength", (1e-9, 1), (0, 1.01, float("nan"))),
        (
            "solver",
            ("auto", "lcm", "ddim", "dpm-solver", "dpm-solver++", "dpm-solver++2s", "euler"),
            ("euler-b", "", "DDIM"),
        ),
        ("eta", (0, 1), (-0.1, 1.1, float("nan"))),
        ("gamma", (0, 1), (-0.1, 1.1)),
        ("dtype", ("fp32", "bf16", "fp16"), ("int8",)),
        ("device", ("auto", "cpu", "cuda", "mps"), ("tpu",)),
    ],
)
def test_ranges_of_sampling(field, inside, outside):
    for value in inside:
        assert getattr(build(SampleConfig, **SAMPLE, **{field: value}), field) == value
    for value in outside:
        with pytest.raises(UsageError) as caught:
            build(SampleConfig, **SAMPLE, **{field: value})
        assert caught.value.message.startswith(f"{option_name(field)} {value}: ")
        assert "\n" not in caught.value.message
        assert caught.value.hint


@pytest.mark.parametrize(
    ("field", "inside", "outside"),
    [
        ("train_steps", (1,), (0,)),
        ("learning_rate", (1e-9, 0.99), (0, 1, float("nan"))),
        ("ema", (0, 0.999), (1, -0.1)),
        ("target_decay", (0, 0.999), (1, -0.1)),
        ("rank", (1, 1024), (0, 1025)),
        ("k", (1, 500), (0, 501)),
        ("guidance_scale", (1, 50), (0.5, 51)),
        ("guidance_scale_max", (1, 50), (0.5, 51)),
        ("drop_captions", (0, 1), (-0.1, 1.1)),
        ("huber_c", (1e-9,), (0,)),
        ("focus", (0, 1), (-0.1, 1.1)),
        ("size", (8, 4096), (7, 4097)),
        ("method", ("lcd", "tcd", "lcf"), ("gan",)),
        ("loss", ("huber", "l2"), ("l1",)),
        ("target", ("student", "ema"), ("teacher",)),
        ("tracker", ("tensorboard", "wandb"), ("printer",)),
        ("precision", ("fp32", "bf16", "fp16"), ("fp8",)),
    ],
)
def test_ranges_of_distilling(field, inside, outside):
    for value in inside:
        assert getattr(build(DistillConfig, **DISTILL, **{field: value}), field) == value
    for value in outside:
        with pytest.raises(UsageError) as caught:
            build(DistillConfig, **DISTILL, **{field: value})
        assert caught.value.message.startswith(f"{option_name(field)} {value}: ")
        assert caught.value.exit_code == 2


def test_what_is_unknown_missing_or_empty():
    with pytest.raises(UsageError, match=r"^there is no option --colour\n\nhint: see --help"):
        build(SampleConfig, **SAMPLE, colour="red")
    with pytest.raises(UsageError, match=r"^--model is required\n\nhint: "):
        build(DistillConfig, data="d", out="o")
    with pytest.raises(UsageError, match=r'^no prompt was given\n\nhint: .*fewstep sample "a red fox"'):
        build(SampleConfig, prompts=(), model="m")


def test_spellings():
    assert option_name("train_steps") == "--steps"
    assert option_name("as_json") == "--json"
    assert option_name("guidance_scale_max") == "--guidance-scale-max"
    assert set(DoctorConfig.model_fields) == {"prune", "as_json"}


def test_what_decides_a_run_may_not_change_on_resume():
    fixed = set(DistillConfig.model_fields) - TrainingConfig.may_change
    assert fixed >= {"model", "data", "seed", "rank", "full", "psi", "k", "guidance_scale", "batch_size", "ema"}
    assert TrainingConfig.may_change >= {"out", "train_steps", "resume", "device"}
