"""`fewstep plan`: before the run's own command, its options; nothing is written."""

import json
from pathlib import Path

import pytest

from fewstep.training import forecast

TINY = ["--rank", "4", "--batch-size", "2", "--device", "cpu"]


@pytest.fixture
def typed(tiny_model_folder: Path, tiny_data_folder: Path) -> list[str]:
    return ["--model", str(tiny_model_folder), "--data", str(tiny_data_folder), *TINY]


@pytest.mark.parametrize("command", ["distill", "finetune"])
def test_disk_is_what_the_run_then_takes(fewstep, typed, tmp_path, monkeypatch, command) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "run"
    planned = fewstep("plan", command, *typed, "--out", str(out), "--json")
    assert planned.code == 0, planned.err
    assert not out.exists()
    disk = json.loads(planned.out)["disk_bytes"]
    options = ["--steps", "3", "--checkpoint-every", "1", "--log-every", "1"]
    assert fewstep(command, *typed, "--out", str(out), *options).code == 0
    checkpoints = sum(file.stat().st_size for file in (out / "checkpoints").iterdir())
    headers = 0.7  # names of tensors, which are much of so small a file
    assert headers * checkpoints < disk["checkpoints"] < checkpoints
    assert headers * (out / "lora.safetensors").stat().st_size < disk["result"] * 1.5


def test_a_plan_that_does_not_fit_says_what_to_change(fewstep, typed, monkeypatch) -> None:
    monkeypatch.setattr(forecast, "resident_bytes", lambda: 2**29)  # which tests before this one change
    large = ["256" if word == "2" else word for word in typed]
    whole = json.loads(fewstep("plan", "distill", *large, "--json").out)
    assert whole["fits"]
    limit = int(whole["peak_bytes"] - 2**20)
    found = fewstep("plan", "distill", *large, "--memory", f"{limit / 2**20}MiB")
    assert "It does not fit into" in found.out
    assert "It fits with --gradient-checkpointing" in found.out
    changed = fewstep(
        "plan", "distill", *large, "--gradient-checkpointing", "--memory", f"{limit / 2**20}MiB", "--json"
    )
    assert json.loads(changed.out)["fits"]
    assert "No options make it fit" in fewstep("plan", "distill", *typed, "--memory", "1MiB").out


def test_a_probe_tells_the_time(fewstep, typed) -> None:
    found = json.loads(fewstep("plan", "distill", *typed, "--probe", "--steps", "10", "--json").out)
    assert found["run_s"] == pytest.approx(10 * found["step_s"])
    assert 0 < found["step_s"] < 60


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "error: plan is followed by distill or finetune\n"),
        (["sample"], "error: plan is followed by distill or finetune, not by sample\n"),
        (["distill", "--memory", "lots"], "error: --memory lots: input should be a valid integer"),
        (["distill", "--memory", "0GiB"], "error: --memory 0: "),
        (["finetune", "--k", "20"], "error: there is no option --k\n"),
        (["distill", "--method", "lcf"], "error: lcf starts from a latent consistency model"),
    ],
)
def test_what_cannot_be_planned(fewstep, typed, words, message) -> None:
    found = fewstep("plan", *words, *typed)
    assert found.code == 2
    assert found.err.startswith(message)
    assert "hint:" in found.err


def test_without_images_their_number_is_given(fewstep, tiny_model_folder) -> None:
    found = fewstep("plan", "distill", "--model", str(tiny_model_folder), *TINY)
    assert "nothing to train on" in found.err
    one, ten = (
        json.loads(fewstep("plan", "finetune", "--model", str(tiny_model_folder), *TINY, "--samples", n, "--json").out)
        for n in ("1", "10")
    )
    assert ten["disk_bytes"]["cache"] == 10 * one["disk_bytes"]["cache"]
