"""`fewstep diagnose`: reads what a run left, says what is wrong with options as they are typed, refuses the rest."""

import json
import re
import shutil

import pytest

from fewstep.configs import DistillConfig, option_name

TINY = ["--rank", "2", "--batch-size", "2", "--log-every", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def run(tiny_model_folder, tiny_data_folder, tmp_path_factory):
    from fewstep.cli import main

    out = tmp_path_factory.mktemp("runs") / "run"
    typed = ["distill", "--model", tiny_model_folder, "--data", tiny_data_folder, "--out", out, *TINY, "--steps", 2,
             "--guidance-scale", 15, "--preview-every", 1, "--preview-images", 2]  # fmt: skip
    assert main([str(word) for word in typed]) == 0
    return out


def test_a_short_run_at_a_high_guidance_is_explained(fewstep, run):
    done = fewstep("diagnose", run)
    assert done.code == 0
    assert done.out.startswith(f"{run}\n")
    for words in ("guidance: the teacher's guidance was 15", "length: the run has 2 steps", "data: 6 samples"):
        assert words in done.out
    options = set(re.findall(r"--[a-z0-9-]+", done.out))
    assert {"--guidance-scale", "--steps"} <= options
    assert options <= {*map(option_name, DistillConfig.model_fields)}
    document = json.loads(fewstep("diagnose", run, "--json").out)
    rules = [finding["rule"] for finding in document["findings"]]
    assert rules == re.findall(r"^(\w+): ", done.out, re.MULTILINE)
    assert all("\0" not in text for finding in document["findings"] for text in finding.values())


def test_several_runs_are_told_one_after_another(fewstep, run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    both = fewstep("diagnose", run, other)
    assert [line for line in both.out.splitlines() if line.startswith("/")] == [str(run), str(other)]
    assert [one["run"] for one in json.loads(fewstep("diagnose", run, other, "--json").out)] == [str(run), str(other)]


def test_data_that_is_gone_does_not_matter(fewstep, run, tmp_path):
    for name in ("config.json", "lora.safetensors"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    config = json.loads((run / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"data": "gone", "model": "gone"}))
    done = fewstep("diagnose", tmp_path)
    assert done.code == 0, done.err
    assert "with --preview-every the pictures themselves are judged too" in done.out


def test_a_run_that_stopped_before_its_first_result_is_explained(fewstep, run, tmp_path):
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    config = json.loads((run / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"learning_rate": 0.5, "train_steps": 900}))
    done = fewstep("diagnose", tmp_path)
    assert done.code == 0, done.err
    for words in ("rate: --learning-rate was 0.5", "length: the run was stopped after 2 of 900", "guidance was 15"):
        assert words in done.out


def test_what_is_no_run_is_refused(fewstep, run, tmp_path):
    done = fewstep("diagnose", tmp_path)
    assert (done.code, done.error) == (2, f"{tmp_path} is no run: it has no config.json")
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    done = fewstep("diagnose", tmp_path)
    assert (done.code, done.error) == (1, f"{tmp_path} has recorded nothing yet")
    done = fewstep("diagnose")
    assert (done.code, done.error) == (2, "no run was given")
