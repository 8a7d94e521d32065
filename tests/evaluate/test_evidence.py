"""compare --preset evidence: its rows, how it goes with other options, and how long it says it takes."""

import json

import pytest

from fewstep.configs import CompareConfig, build
from fewstep.errors import FewstepError, UsageError
from fewstep.evaluate import setup
from fewstep.evaluate.evidence import Pace, expanded, nfe_of, rows_of, sampler_options
from fewstep.evaluate.rows import RowSpec, draw_of, parse_row
from fewstep.events import in_minutes
from fewstep.lora.recipe import Recipe
from fewstep.session import Session
from tests.evaluate.test_compare import Distance, lora_file
from tests.tiny import tiny_model

LCM = Recipe(method="lcd", solver="lcm", steps=4, guidance_scale=1, k=20)


def test_the_rows_are_the_survey_then_equals_in_cost_then_other_steps():
    rows = rows_of("fast", LCM, 4.0)
    assert rows[:4] == ("ddim:32@4", "dpm-solver:16@4", "dpm-solver++:8@4", "lcm:4+fast:1")
    assert rows[4:7] == ("ddim:2@4", "dpm-solver++:2@4", "lcm,grid=lcm,k=20:2@4+fast:0")
    assert rows[7:10] == ("ddim:4@1", "dpm-solver++:4@1", "lcm,grid=lcm,k=20:4@1+fast:0")
    assert rows[-3:] == ("lcm:2+fast:1", "lcm:1+fast:1", "lcm:8+fast:1")
    costs = [nfe_of(parse_row(row)) for row in rows]
    assert costs == [64, 32, 16, 4, *[4] * 6, *[8] * 6, 2, 1, 8]
    assert rows_of("fast", LCM)[0] == "ddim:32"  # at what the model recommends
    assert nfe_of(parse_row("ddim:2")) == nfe_of(parse_row("lcm:2+fast:0")) == 4


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, ",grid=lcm,k=20"),
        ({"grid": "quadratic", "k": 10}, ",grid=quadratic,k=10"),
        ({"grid": "trailing"}, ",grid=trailing"),
        ({"k": None}, ""),
        ({"solver": "tcd", "gamma": 0.3}, ",grid=lcm,k=20,gamma=0.3"),
        ({"solver": "ddim", "eta": 0.0, "gamma": 0.5}, ",grid=lcm,k=20,eta=0.0"),
    ],
)
def test_what_the_lora_says_of_its_sampler_is_written_out(fields, options):
    assert sampler_options(LCM.model_copy(update=fields)) == options


def test_without_the_lora_the_timesteps_are_the_same():
    with Session("emoji", ()) as session:
        wish = expanded(build(CompareConfig, preset="evidence"))
        plans = {}
        for row in wish.rows:
            if (row.startswith("lcm") and ":4@1" in row) or row.startswith("lcm:4+"):
                spec = parse_row(row)
                session.plug(spec.loras)
                plans[spec.loras[0]] = session.plan(draw_of(spec, wish, ("",)))
        with_it, without = plans["lcm:1"], plans["lcm:0"]
    assert with_it.timesteps == without.timesteps
    assert (with_it.k, with_it.grid, with_it.solver_name) == (without.k, without.grid, without.solver_name)


def test_what_is_typed_beside_it_counts():
    assert expanded(build(CompareConfig)) == build(CompareConfig)
    wish = expanded(build(CompareConfig, preset="evidence"))
    assert (wish.images, wish.teacher_images, str(wish.prompt_file)) == (256, 256, "names")
    typed = expanded(build(CompareConfig, preset="evidence", images=64, prompt_file="typed", teacher_guidance=3.5))
    assert (typed.images, typed.teacher_images, str(typed.prompt_file)) == (64, 64, "typed")
    assert typed.rows[0] == "ddim:32@3.5"
    assert expanded(build(CompareConfig, preset="evidence", images=64, teacher_images=80)).teacher_images == 80


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"preset": "evidence", "rows": ("ddim:3",)}, "rows and preset exclude each other", "leave out one"),
        ({"preset": "evidence", "seed_sets": 2}, "seed_sets and preset exclude each other", "leave out one"),
        ({"acceleration": "lcm"}, "acceleration needs preset evidence", "give both"),
        ({"preset": "proof"}, "preset proof: ", "help"),
        ({"preset": "evidence", "model": "sd15"}, "no acceleration LoRA ships with sd15", "acceleration"),
        ({"preset": "evidence", "acceleration": "noto-mono"}, "does not say that it accelerates", "inspect noto-mono"),
        ({"preset": "evidence", "acceleration": "lcm:0.8"}, "the rows hold it at 1 against 0", "leave its weight out"),
        ({"preset": "evidence", "acceleration": "nothing"}, "LoRA file not found: nothing", "check the path"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, message, hint):
    with pytest.raises((UsageError, FewstepError)) as caught:
        expanded(build(CompareConfig, **options))
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


def test_the_time_it_takes():
    pace, wish = Pace(network=0.01, rest=0.1, features=0.2), build(CompareConfig, images=10, teacher_images=5)
    specs = [parse_row("ddim:2@3"), parse_row("lcm:4@1")]
    teacher = RowSpec("ddim:100", "ddim", 100, None, ())
    assert pace.seconds(specs, wish, teacher, 3) == pytest.approx(0.01 * (80 + 8 * 200) + 0.3 * 25 + 0.1 * 3)
    assert [in_minutes(t) for t in (40, 700, 9000)] == ["40 seconds", "12 minutes", "2.5 hours"]


def test_a_users_own_model_has_the_table_by_one_command(fewstep, monkeypatch, tmp_path):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(setup, "TEACHER", RowSpec("ddim:2", "ddim", 2, None, ()))
    for name in ("load_lpips", "load_inception", "load_efficientnet"):
        monkeypatch.setattr(f"fewstep.evaluate.measure.{name}", stand_in(name))
    model = tiny_model(tmp_path / "tiny")
    lora = lora_file(tmp_path / "fast.safetensors")
    out = tmp_path / "out"
    done = fewstep("compare", "--json", preset="evidence", model=str(model), acceleration=str(lora), images=4,
                   prompts="typed",                    device="cpu", out=out)  # fmt: skip
    assert done.code == 0, done.err
    assert "note: this takes about" in done.err.replace("\n", " ")
    assert "19 rows of 4 pictures, and 4 of the teacher's; --images changes it" in done.err
    rows = json.loads(done.out)["rows"]
    assert [row["nfe"] for row in rows] == [64, 32, 16, 4, *[4] * 6, *[8] * 6, 2, 1, 8]
    assert all(row["mind"] is not None for row in rows)


def stand_in(name):
    """What the function of this name loads, quickly."""
    from fewstep.metrics.networks import EfficientNet, Inception
    from tests.evaluate.stand_ins import Features

    made = {
        "load_lpips": Distance,
        "load_inception": lambda: Features(Inception.label),
        "load_efficientnet": lambda: Features(EfficientNet.label),
    }[name]
    return lambda device: made()
