"""Rows as they are typed: every part is understood, and what is wrong is said with the row."""

import pytest

from fewstep.configs import CompareConfig, build
from fewstep.errors import FewstepError, UsageError
from fewstep.evaluate.rows import draw_of, loras_of, parse_row

CONFIG = build(CompareConfig, model="m", batch_size=3, dtype="bf16", device="cpu")


@pytest.mark.parametrize(
    ("text", "solver", "steps", "guidance_scale", "loras"),
    [
        ("ddim:32", "ddim", 32, None, ()),
        ("ddim:32@7.5", "ddim", 32, 7.5, ()),
        ("dpm-solver++:8", "dpm-solver++", 8, None, ()),
        ("dpm-solver++2s:8@1", "dpm-solver++2s", 8, 1.0, ()),
        ("lcm:4+lcm:1", "lcm", 4, None, ("lcm:1",)),
        ("lcm:4@1.5+lcm:1+high-contrast:0.8", "lcm", 4, 1.5, ("lcm:1", "high-contrast:0.8")),
        ("lcm:4+a+b.safetensors:-0.5", "lcm", 4, None, ("a+b.safetensors:-0.5",)),
        ("lcm:4+C:/loras/x.safetensors:1", "lcm", 4, None, ("C:/loras/x.safetensors:1",)),
        ("euler:6", "euler", 6, None, ()),
        (" heun:6 ", "heun", 6, None, ()),
    ],
)
def test_rows_are_understood(text, solver, steps, guidance_scale, loras):
    assert parse_row(text) == (text.strip(), solver, steps, guidance_scale, loras, None, None, "auto", None, False)


@pytest.mark.parametrize("text", ["ddim:32@best", "lcm:4@best+lcm:1", "ddim,eta=0.5:4@best"])
def test_the_best_guidance_may_be_asked_for(text):
    row = parse_row(text)
    assert (row.text, row.best, row.guidance_scale) == (text, True, None)
    assert row.loras == (("lcm:1",) if "lcm" in text else ())


def test_fresh_noise_and_grid_stand_after_the_solver():
    row = parse_row("ddim,eta=0.5:10@7.5+lcm:1")
    assert (row.solver, row.steps, row.guidance_scale, row.loras, row.eta, row.gamma) == (
        "ddim", 10, 7.5, ("lcm:1",), 0.5, None
    )  # fmt: skip
    assert draw_of(parse_row("ddim,eta=0.5,grid=quadratic:4"), CONFIG, ("a cat",)).grid == "quadratic"
    row = parse_row("lcm,k=20:4+lcm:0")
    wish = draw_of(row, CONFIG, ("a cat",))
    assert (wish.solver, wish.k, wish.grid, wish.steps, row.loras) == ("lcm", 20, "auto", 4, ("lcm:0",))
    wish = draw_of(parse_row("tcd,gamma=.2:4"), CONFIG, ("a cat",))
    assert (wish.solver, wish.steps, wish.eta, wish.gamma) == ("tcd", 4, None, 0.2)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("ddim", "this is not SOLVER:STEPS", "a row is SOLVER:STEPS[@GUIDANCE]"),
        ("", "this is not SOLVER:STEPS", "a row is"),
        ("dimm:32", "unknown solver 'dimm'", "known ones: ddim, euler, dpm-solver-1, euler-a, "),
        ("ddim:", "steps '' is not a whole number", "a row is"),
        ("ddim:4.5", "steps '4.5' is not a whole number", "a row is"),
        ("ddim:²", "steps '²' is not a whole number", "a row is"),
        ("ddim:-4", "steps '-4' is not a whole number", "a row is"),
        ("ddim,eta=x:4", "'eta=x' is not eta=NUMBER, gamma=NUMBER, k=NUMBER or grid=auto|lcm|quadratic", "a row is"),
        ("lcm,k=2.5:4", "'k=2.5' is not eta=NUMBER, gamma=NUMBER, k=NUMBER or", "a row is"),
        ("ddim,grid=even:4", "'grid=even' is not eta=NUMBER", "a row is"),
        ("ddim,:4", "'' is not eta=NUMBER", "a row is"),
        ("ddim,noise=1:4", "'noise=1' is not eta=NUMBER", "a row is"),
        ("dpm-solver:15", "dpm-solver makes 2 network calls a step, but 15 is not a multiple", "multiple of 2"),
        ("ddim:4@", "guidance '' is not a number", "@1 for none"),
        ("ddim:4@Best", "guidance 'Best' is not a number", "or @best"),
        ("ddim:4@high", "guidance 'high' is not a number", "@1 for none"),
        ("lcm:4+lcm", "'+lcm' is not LORA:WEIGHT", "a row is"),
        ("lcm:4+lcm:x", "'+lcm:x' is not LORA:WEIGHT", "a row is"),
        ("lcm:4+", "'+' is not LORA:WEIGHT", "a row is"),
    ],
)
def test_what_is_wrong_is_said_with_the_row(text, message, hint):
    with pytest.raises(UsageError) as caught:
        parse_row(text)
    assert caught.value.message.startswith(f"rows {text}: {message}")
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ddim:0", "steps 0: "),
        ("ddim:1001", "steps 1001: "),
        ("ddim:4@51", "guidance_scale"),
        ("ddim,eta=2:4", "eta 2.0: "),
        ("lcm,k=0:4", "k 0: "),
    ],
)
def test_values_out_of_range_are_said_with_the_row(text, message):
    with pytest.raises(UsageError) as caught:
        draw_of(parse_row(text), CONFIG, ("a cat",))
    assert caught.value.message.startswith(f"rows {text}: {message}")


def test_a_lora_that_is_not_there_is_said_with_the_row():
    with pytest.raises(FewstepError) as caught:
        draw_of(parse_row("lcm:4+nowhere.safetensors:1"), CONFIG, ("a cat",))
    assert caught.value.message == "rows lcm:4+nowhere.safetensors:1: LoRA file not found: nowhere.safetensors"
    assert ".safetensors file" in caught.value.hint


def test_what_is_wanted_is_what_sample_would_be_told(tmp_path):
    (tmp_path / "x.safetensors").touch()
    lora = f"{tmp_path}/x.safetensors:0.5"
    row = parse_row(f"lcm:4@1.5+{lora}")
    wish = draw_of(row, CONFIG, ("a cat", "a dog"))
    assert (wish.solver, wish.steps, wish.guidance_scale, loras_of(row, "m"), wish.seed) == ("lcm", 4, 1.5, (lora,), 0)
    assert (wish.prompts, wish.batch_size, wish.negative_prompt) == (("a cat", "a dog"), 3, "")
