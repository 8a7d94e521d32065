"""Which timesteps a distillation trains on, and latent consistency fine-tuning from the command line."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from fewstep.commands.train import ended
from fewstep.configs import DistillConfig, FinetuneConfig
from fewstep.diffusion.schedule import lcm_grid, schedule_from_config
from fewstep.lora.recipe import from_metadata
from fewstep.training.adapt import after, trained, training_samples
from fewstep.training.methods.consistency import CLEAN, few_step_timesteps, level_at, timesteps, weights

SCHEDULE = schedule_from_config({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"})
TINY = ["--rank", "2", "--steps", "2", "--batch-size", "2", "--log-every", "1", "--device", "cpu"]


def places(count: int = 1000) -> torch.Tensor:
    return (torch.arange(count) + 0.5) / count


def config(**values) -> DistillConfig:
    return DistillConfig(model="m", data="d", out="o", **values)


@pytest.mark.parametrize("k", [1, 5, 20, 50, 100])
def test_every_timestep_of_the_grid_is_as_likely(k: int) -> None:
    s, t = timesteps(config(k=k), places(), 1000)
    found, counts = s.unique(return_counts=True)
    assert found.tolist() == list(range(k - 1, 1000, k))
    assert counts.min() == counts.max()
    assert t.equal(s - k)
    assert t.min() == CLEAN


def test_focus_draws_its_share_where_few_step_sampling_begins() -> None:
    few = few_step_timesteps(20, 1000, "lcm")
    assert set(lcm_grid(4)) < set(few)
    assert {999, 499} < set(few)
    assert set(timesteps(config(focus=1), places(), 1000)[0].tolist()) == set(few)
    s, _ = timesteps(config(focus=0.5), places(), 1000)
    assert s[:500].unique().tolist() == few
    assert s[500:].unique().tolist() == list(range(19, 1000, 20))


def test_focus_follows_the_grid_that_is_asked_for() -> None:
    s, _ = timesteps(config(focus=1, grid="quadratic"), places(), 1000)
    assert set(lcm_grid(4, quadratic=True)) < set(s.tolist())
    assert 499 not in s


def test_inverse_step_weighs_by_how_little_noise_a_step_takes_away() -> None:
    wish = config(k=20, weighting="inverse-step")
    s, t = timesteps(wish, places(), 1000)
    high, low = SCHEDULE.at(s), level_at(SCHEDULE, t)
    grid = torch.arange(19, 1000, 20)
    found = weights(wish, SCHEDULE, high, low, grid, grid - 20)
    taken = high.sigma / high.alpha - low.sigma / low.alpha
    torch.testing.assert_close(found * taken, (found * taken)[:1].expand_as(taken))
    assert float(found.mean()) == pytest.approx(1, rel=1e-5)
    assert weights(config(k=20), SCHEDULE, high, low, grid, grid - 20) == 1


def test_the_last_step_ends_without_noise() -> None:
    level, table = level_at(SCHEDULE, torch.tensor([CLEAN, 0, 979])), SCHEDULE.at([0.0, 979.0])
    assert level.t.tolist() == [0, 0, 979]
    assert level.alpha.flatten().tolist() == [1, *table.alpha.flatten().tolist()]
    assert level.sigma.flatten().tolist() == [0, *table.sigma.flatten().tolist()]


@pytest.fixture
def lcm(fewstep, tiny_model_folder, tiny_data_folder, tmp_path):
    done = fewstep("distill", *TINY, "--k", "50", model=tiny_model_folder, data=tiny_data_folder, out=tmp_path / "lcm")
    assert done.code == 0, done.err
    return tmp_path / "lcm" / "lora.safetensors"


def recipe_in(path):
    with safe_open(path, "pt") as file:
        return from_metadata(file.metadata(), str(path))


def test_fine_tuning_a_few_step_model_needs_no_teacher(fewstep, lcm, tiny_model_folder, tiny_data_folder, tmp_path):
    common = {"model": tiny_model_folder, "data": tiny_data_folder}
    out = tmp_path / "lcf"
    done = fewstep("distill", *TINY, "--method", "lcf", "--k", "50", init_lora=lcm, out=out, **common)
    assert done.code == 0, done.err
    recipe = recipe_in(out / "lora.safetensors")
    assert (recipe.method, recipe.solver, recipe.guidance_scale, recipe.k) == ("lcf", "lcm", 1.0, 50)
    assert recipe.accelerates
    assert recipe.teacher_guidance_scale == recipe_in(lcm).teacher_guidance_scale
    assert "psi" not in recipe.training
    began_from = recipe.training["began_from"]
    assert (began_from["method"], began_from["k"]) == ("lcd", 50)
    assert began_from["training"] == recipe_in(lcm).training
    done = fewstep("sample", "cat", "--device", "cpu", "--json", model=tiny_model_folder,
                   lora=out / "lora.safetensors", out=tmp_path / "images")  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads(done.out)["images"][0]["nfe"] == 4


@pytest.mark.parametrize("options", [[], ["--full", "--psi", "dpm-solver++"]])
def test_trajectory_distillation_is_sampled_by_its_own_solver(
    fewstep, options, tiny_model_folder, tiny_data_folder, tmp_path
):
    done = fewstep("distill", *TINY, "--method", "tcd", *options, model=tiny_model_folder, data=tiny_data_folder,
                   out=tmp_path / "tcd")  # fmt: skip
    assert done.code == 0, done.err
    lora = [] if options else ["--lora", tmp_path / "tcd" / "lora.safetensors"]
    model = tmp_path / "tcd" / "model" if options else tiny_model_folder
    done = fewstep("sample", "cat", "--device", "cpu", "--json", *lora, model=model, out=tmp_path / "images")
    assert done.code == 0, done.err
    image = json.loads(done.out)["images"][0]
    assert (image["nfe"], image["solver"]) == (4, "tcd")


def test_a_result_asks_for_the_sampler_it_was_given(fewstep, tiny_model_folder, tiny_data_folder, tmp_path):
    done = fewstep("distill", *TINY, "--method", "tcd", "--sampler", "lcm", model=tiny_model_folder,
                   data=tiny_data_folder, out=tmp_path / "tcd")  # fmt: skip
    assert done.code == 0, done.err
    recipe = recipe_in(tmp_path / "tcd" / "lora.safetensors")
    assert (recipe.method, recipe.solver) == ("tcd", "lcm")


def test_a_whole_few_step_model_is_fine_tuned_too(fewstep, tiny_model_folder, tiny_data_folder, tmp_path):
    run = {"data": tiny_data_folder}
    done = fewstep("distill", *TINY, "--full", model=tiny_model_folder, out=tmp_path / "whole", **run)
    assert done.code == 0, done.err
    whole = tmp_path / "whole" / "model"
    done = fewstep("distill", *TINY, "--full", "--method", "lcf", model=whole, out=tmp_path / "lcf", **run)
    assert done.code == 0, done.err
    recipe = json.loads((tmp_path / "lcf" / "model" / "fewstep.json").read_text())
    assert (recipe["method"], recipe["solver"]) == ("lcf", "lcm")


def test_lcf_of_what_is_no_few_step_model_is_refused(fewstep, tiny_model_folder, tiny_data_folder, tmp_path):
    common = {"model": tiny_model_folder, "data": tiny_data_folder, "out": tmp_path / "out"}
    done = fewstep("distill", *TINY, "--method", "lcf", **common)
    assert done.code == 2
    assert "has no recipe of one" in done.error
    assert "--init-lora" in done.hint
    done = fewstep("distill", *TINY, "--method", "lcf", "--psi", "heun", "--guidance-scale", "4", **common)
    assert done.code == 2
    assert done.error == "--guidance-scale, --psi: no effect with --method lcf"
    assert done.hint == "leave it out, or use --method lcd"
    assert not (tmp_path / "out").exists()


def test_a_stopped_run_says_how_far_it_came(lcm):
    recipe = recipe_in(lcm)
    assert after(recipe, 2) == recipe
    assert after(recipe, 1).training == recipe.training | {"steps": 1, "planned_steps": 2}


@pytest.mark.parametrize(
    ("command", "options", "result"),
    [("distill", [], "lora.safetensors"), ("finetune", [], "lora.safetensors"), ("finetune", ["--full"], "model")],
)
def test_a_run_ends_by_saying_where_its_result_is_and_how_to_draw_with_it(
    fewstep, tiny_model_folder, tiny_data_folder, tmp_path, command, options, result
):
    data, out = tmp_path / "my images", tmp_path / "my run"
    shutil.copytree(tiny_data_folder, data)
    (data / "00.txt").write_text('a "round" thing, for $5 (and more), ' + "long " * 40)
    done = fewstep(command, *TINY, *options, model=tiny_model_folder, data=data, out=out)
    assert (done.code, done.out) == (0, f"{out / result}\n")
    found = re.search(r"^note: draw with it: fewstep (sample .*)$", done.err, re.MULTILINE)
    assert found, done.err
    words = shlex.split(found[1])
    assert words[1].startswith("a round thing, for 5 (and more), long")
    assert len(words[1]) <= 60
    drawn = fewstep(*words, "--device", "cpu", steps=1, out=tmp_path / "images")
    assert drawn.code == 0, drawn.err


def test_after_the_embedded_model_the_command_is_short(capsys, tmp_path):
    config = FinetuneConfig(model="emoji", data=tmp_path, out="run")
    assert ended(config, trained(config, "")).text == str(Path("run") / "lora.safetensors")
    assert capsys.readouterr().err == 'note: draw with it: fewstep sample "a photo" --lora run\n'


def test_what_of_the_data_is_left_out_is_said(tiny_data_folder, tmp_path, capsys):
    data = Path(shutil.copytree(tiny_data_folder, tmp_path / "data"))
    (data / "more.gif").write_bytes(b"")
    assert len(training_samples(DistillConfig(model="m", data=data, out="o"))) == 6
    assert capsys.readouterr() == ("", f"note: left out of {data}: 1 .gif file\n")
