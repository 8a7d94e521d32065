"""From a model folder and an images folder to a LoRA and images, and the same image in diffusers itself."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file

import fewstep
from fewstep.cli import main
from fewstep.configs import Draw, build
from tests.sessions import session
from tests.tiny import tiny_images, tiny_model

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("e2e") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_images(tmp_path_factory.mktemp("e2e") / "data")


def distill_options(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    options = [
        "--rank",
        "4",
        "--batch-size",
        "2",
        "--steps",
        "20",
        "--checkpoint-every",
        "5",
        "--learning-rate",
        "0.01",
    ]
    return [
        "distill",
        "--model",
        str(model),
        "--data",
        str(data),
        "--out",
        str(out),
        "--device",
        "cpu",
        *options,
        *more,
    ]


def test_a_killed_and_resumed_distillation_is_bit_equal(model: Path, data: Path, tmp_path: Path) -> None:
    assert main(distill_options(model, data, tmp_path / "whole")) == 0
    environment = os.environ | {"PYTHONPATH": f"{ROOT}/src", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", "fewstep", *distill_options(model, data, tmp_path / "parts")]
    killed = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    checkpoints = tmp_path / "parts" / "checkpoints"
    while killed.poll() is None and not list(checkpoints.glob("step-*.safetensors")):
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert list(checkpoints.glob("step-*.safetensors"))
    assert main(distill_options(model, data, tmp_path / "parts", "--resume")) == 0

    for name in ("lora.safetensors", "checkpoints/step-00000020.safetensors"):
        whole, parts = (load_file(tmp_path / run / name) for run in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert (tmp_path / "whole" / "lora.safetensors").read_bytes() == (
        tmp_path / "parts" / "lora.safetensors"
    ).read_bytes()


def test_a_run_killed_before_its_export_is_finished_by_resuming(model: Path, data: Path, tmp_path: Path) -> None:
    assert main(distill_options(model, data, tmp_path / "run")) == 0
    lora = tmp_path / "run" / "lora.safetensors"
    before = lora.read_bytes()
    lora.unlink()
    assert main(distill_options(model, data, tmp_path / "run", "--resume")) == 0
    assert lora.read_bytes() == before


@pytest.mark.parametrize("steps", [1, 4])
def test_the_lora_gives_the_same_image_in_diffusers(model: Path, data: Path, tmp_path: Path, steps: int) -> None:
    assert main(distill_options(model, data, tmp_path / "run", "--size", "16")) == 0
    lora, prompt, seed = tmp_path / "run" / "lora.safetensors", "a red fish", 7
    with session(model, [str(lora)]) as opened:
        draw = build(Draw, prompts=(prompt,), steps=steps, seed=seed)
        plan = opened.plan(draw)
        (ours,) = opened.pictures(draw, plan)
        with opened.plugged():
            (without,) = opened.pictures(draw, plan)

    theirs = StableDiffusionPipeline.from_pretrained(model, safety_checker=None, local_files_only=True)
    theirs.scheduler = LCMScheduler.from_config(theirs.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    theirs.load_lora_weights(str(lora.parent), weight_name=lora.name, local_files_only=True)
    generator = torch.Generator("cpu").manual_seed(seed)
    image = theirs(
        prompt,
        num_inference_steps=steps,
        guidance_scale=1.0,
        generator=generator,
        height=16,
        width=16,
        output_type="np",
    ).images[0]
    expected = torch.from_numpy(np.asarray(image)).permute(2, 0, 1) * 2 - 1
    assert ours.recipe["nfe"] == steps
    torch.testing.assert_close(ours.pixels, expected, rtol=0, atol=1e-3)
    assert not torch.allclose(ours.pixels, without.pixels, atol=1e-2)  # the LoRA does something


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_draws_nearly_the_same_image(model: Path, dtype: str) -> None:
    drawn = [
        fewstep.sample("a cat", str(model), dtype=name, device="cpu", steps=4, guidance_scale=3)[0]
        for name in ("fp32", dtype)
    ]
    error = (drawn[0].pixels - drawn[1].pixels).square().mean()
    assert 10 * torch.log10(4 / error) > 30  # dB, of a signal in [-1, 1]


def test_finetuning_makes_a_style_lora_that_adds_to_the_acceleration(model: Path, data: Path, tmp_path: Path) -> None:
    options = ["--model", str(model), "--data", str(data), "--rank", "2", "--batch-size", "2", "--steps", "4"]
    assert main(["finetune", *options, "--device", "cpu", "--out", str(tmp_path / "style")]) == 0
    assert main(distill_options(model, data, tmp_path / "fast")) == 0
    loras = [f"{tmp_path / 'style' / 'lora.safetensors'}:0.8", f"{tmp_path / 'fast' / 'lora.safetensors'}:1.0"]
    with session(model, loras) as opened:
        draw = build(Draw, prompts=("a cat",))
        plan = opened.plan(draw)
        assert (plan.solver_name, plan.steps, plan.guidance_scale) == ("lcm", 4, 1.0)
        (picture,) = opened.pictures(draw, plan)
    assert picture.pixels.isfinite().all()


@pytest.mark.parametrize("command", ["distill", "finetune"])
def test_full_training_leaves_a_model_folder_that_samples(
    model: Path, data: Path, tmp_path: Path, command: str
) -> None:
    options = ["--data", str(data), "--batch-size", "2", "--steps", "2", "--full", "--device", "cpu"]
    assert main([command, "--model", str(model), *options, "--out", str(tmp_path / "run")]) == 0
    folder = str(tmp_path / "run" / "model")
    assert main(["sample", "a cat", "--model", folder, "--out", str(tmp_path / "images"), "--device", "cpu"]) == 0
    plan = session(folder).plan(build(Draw, prompts=("a cat",)))
    assert plan.solver_name == ("lcm" if command == "distill" else "dpm-solver++")


def test_gradient_checkpointing_changes_memory_not_the_result(model: Path, data: Path, tmp_path: Path) -> None:
    for name, more in (("plain", []), ("checkpointed", ["--gradient-checkpointing"])):
        assert main(distill_options(model, data, tmp_path / name, *more)) == 0
    plain, checkpointed = (load_file(tmp_path / name / "lora.safetensors") for name in ("plain", "checkpointed"))
    for key in plain:
        torch.testing.assert_close(plain[key], checkpointed[key], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("options", [["--psi", "dpm-solver"], ["--psi", "dpm-solver++", "--target", "student"]])
def test_every_psi_and_target_distils(model: Path, data: Path, tmp_path: Path, options: list[str]) -> None:
    more = ["--loss", "l2", "--guidance-scale", "3", "--guidance-scale-max", "9", "--precision", "bf16", *options]
    assert main(distill_options(model, data, tmp_path / "run", "--gradient-checkpointing", *more)) == 0
    first = load_file(tmp_path / "run" / "lora.safetensors")
    assert any(tensor.any() for key, tensor in first.items() if key.endswith("lora_up.weight"))
