"""Everything that can be wrong with what is given: one clear line with a hint, the exit code, nothing half-done."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.training.methods import consistency

ROOT = Path(__file__).parents[1]


@pytest.fixture
def model(tiny_model_folder, tmp_path):
    """A copy of the model, to break."""
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))


@pytest.fixture
def data(tiny_data_folder, tmp_path):
    """A copy of the images, to break."""
    return Path(shutil.copytree(tiny_data_folder, tmp_path / "data"))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture(scope="session")
def lora(tiny_model_folder, tiny_data_folder, tmp_path_factory):
    """A LoRA distilled from the tiny model, in a run folder of two steps."""
    from fewstep.cli import main

    folder = tmp_path_factory.mktemp("lora") / "run"
    typed = ["distill", "--model", tiny_model_folder, "--data", tiny_data_folder, "--out", folder, *TINY]
    assert main([str(word) for word in typed]) == 0
    return folder / "lora.safetensors"


TINY = ["--rank", 2, "--batch-size", 2, "--steps", 2, "--log-every", 1, "--device", "cpu"]


def hidden(folder: Path) -> list[Path]:
    """Temporary files left anywhere below."""
    return [path for path in folder.rglob(".*") if path.is_file() or path.is_dir()]


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


# Models


def remove_vae(model):
    shutil.rmtree(model / "vae")


def cut_weights(model):
    cut(model / "unet" / "diffusion_pytorch_model.safetensors")


def cut_header(model):
    (model / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x10\0")


def pickle_weights(model):
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), model / "unet" / "diffusion_pytorch_model.bin")
    weights.unlink()


def cut_text_encoder(model):
    cut(model / "text_encoder" / "model.safetensors")


def break_config(model):
    cut(model / "unet" / "config.json")


def break_scheduler(model):
    cut(model / "scheduler" / "scheduler_config.json")


def list_scheduler(model):
    (model / "scheduler" / "scheduler_config.json").write_text("[]")


def worded_scheduler(model):
    (model / "scheduler" / "scheduler_config.json").write_text('{"beta_start": "small"}')


def lose_weight(part, file="diffusion_pytorch_model.safetensors"):
    def lose(model):
        tensors = load_file(model / part / file)
        tensors.pop(next(key for key in sorted(tensors) if key.endswith("norm_out.weight") or "layer_norm1" in key))
        save_file(tensors, model / part / file, {"format": "pt"})

    lose.__name__ = f"lose_weight_of_{part}"
    return lose


def unknown_schedule(model):
    path = model / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"beta_schedule": "sinus"}))


def unknown_prediction(model):
    path = model / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "flow"}))


def remove_index(model):
    (model / "model_index.json").unlink()


def two_encoders(model):
    path = model / "model_index.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]})
    )


def remove_vocabulary(model):
    for path in (model / "tokenizer").iterdir():
        path.unlink()


def cut_vocabulary(model):
    for path in (model / "tokenizer").iterdir():
        cut(path)


def break_recipe(model):
    (model / "fewstep.json").write_text('{"steps": "many"}')


def other_width(model):
    path = model / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cross_attention_dim": 24}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, r"model .*/model not found"),
        (remove_index, r".*/model is not a Stable Diffusion model folder: it has no model_index\.json"),
        (remove_vae, r"model folder .*/model has no vae folder"),
        (cut_weights, r".*/unet/diffusion_pytorch_model\.safetensors is not a readable safetensors file \("),
        (cut_header, r".*/unet/diffusion_pytorch_model\.safetensors is not a readable safetensors file \("),
        (pickle_weights, r"cannot load .*/unet \("),
        (
            other_width,
            r".*/unet/config\.json does not fit its weights: .*attn2.*\.weight is 16 x 16, not 16 x 24",
        ),
        (cut_text_encoder, r".*/text_encoder/model\.safetensors is not a readable safetensors file \("),
        (break_config, r"config is not readable JSON: .*/unet/config\.json \("),
        (break_scheduler, r"scheduler config is not readable JSON: .*scheduler_config\.json"),
        (list_scheduler, r"scheduler config is no JSON object: .*/scheduler_config\.json holds \[\]"),
        (worded_scheduler, r".*/scheduler_config\.json: beta_start is \"small\", not a number from 0 to 1$"),
        (lose_weight("unet"), r".*/unet/config\.json asks for conv_norm_out\.weight, which its weights lack"),
        (
            lose_weight("vae"),
            r".*/vae/config\.json asks for decoder\.conv_norm_out\.weight, which its weights lack",
        ),
        (
            lose_weight("text_encoder", "model.safetensors"),
            r".*/text_encoder/config\.json asks for .*layer_norm1.*, which its weights lack",
        ),
        (unknown_schedule, r".*/scheduler_config\.json: unknown beta_schedule 'sinus'"),
        (unknown_prediction, r".*/scheduler_config\.json: unknown prediction.* 'flow'"),
        (two_encoders, r"model folder .*/model has no text_encoder_2 folder"),
        (remove_vocabulary, r"cannot load .*/tokenizer \("),
        (cut_vocabulary, r"tokenizer file is not readable JSON: .*/tokenizer/tokenizer\.json \("),
        (break_recipe, r"the sampling recipe .*/fewstep\.json is damaged: method is missing \("),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_spoilt_models(fewstep, model, out, spoil, message):
    spoil(model)
    done = fewstep("sample", "a cat", model=model, steps=1, out=out)
    assert (done.code, done.out) == (1, "")
    assert re.match(message, done.error), done.error
    assert done.err == f"error: {done.error}\n\nhint: {done.hint}\n"
    assert not out.exists()


def test_weights_that_run_code_are_never_loaded(fewstep, model, out, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled"))
    pickle_weights(model)
    done = fewstep("sample", "a cat", model=model, steps=1, out=out)
    assert done.code == 1
    assert ".safetensors weights" in done.hint


def test_a_tokenizer_without_its_config_still_knows_where_to_cut(fewstep, model, out):
    whole = fewstep("sample", "a cat", model=model, steps=1, out=out / "whole").out.strip()
    (model / "tokenizer" / "tokenizer_config.json").unlink()
    done = fewstep("sample", "a cat", model=model, steps=1, out=out / "bare")
    assert done.code == 0, done.err
    assert Path(done.out.strip()).name == Path(whole).name


def test_a_model_is_found_wanting_before_training_begins(fewstep, model, tiny_data_folder, out):
    unknown_prediction(model)
    done = fewstep("distill", *TINY, model=model, data=tiny_data_folder, out=out)
    assert done.code == 1
    assert "'flow'" in done.error
    assert not out.exists()


def test_a_model_is_a_folder_or_a_checkpoint(fewstep, model, out):
    done = fewstep("sample", "a cat", model=model / "model_index.json", out=out)
    assert done.code == 1
    assert "is not a readable safetensors file" in done.error
    assert "name a Stable Diffusion folder or a .safetensors checkpoint" in done.hint


# Data


def remove_data(data):
    shutil.rmtree(data)


def empty_data(data):
    remove_data(data)
    data.mkdir()


def remove_caption(data):
    (data / "03.txt").unlink()


def cut_image(data):
    cut(data / "03.png")


def text_image(data):
    (data / "03.png").write_text("not an image")


def break_line(data):
    (data / "metadata.jsonl").write_text('{"file_name": "00.png", "text": "x"}\n{"file_name": "01.png", "te\n')


def no_file_name(data):
    (data / "metadata.csv").write_text("file,text\n00.png,x\n")


def missing_file(data):
    (data / "metadata.csv").write_text("file_name,text\n00.png,x\n77.png,x\n")


def latin_caption(data):
    (data / "03.txt").write_bytes("größer".encode("latin-1"))


def dangling_link(data):
    (data / "03.png").unlink()
    (data / "03.png").symlink_to("absent.png")


DATA = pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove_data, r"data not found: .*/data$"),
        (empty_data, r"no images in .*/data$"),
        (remove_caption, r"no caption for .*/03\.png$"),
        (cut_image, r"unreadable image: .*/03\.png \("),
        (text_image, r"unreadable image: .*/03\.png \("),
        (latin_caption, r".*/03\.txt is not UTF-8 text \("),
        (dangling_link, r".*/03\.png is no file, or a link that leads nowhere$"),
        (break_line, r".*metadata\.jsonl line 2 is not JSON"),
        (no_file_name, r".*metadata\.csv line 2 has no file_name$"),
        (missing_file, r".*metadata\.csv line 3 names 77\.png, which is not in .*/data$"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)


@DATA
@pytest.mark.parametrize("command", ["distill", "finetune"])
def test_spoilt_data(fewstep, tiny_model_folder, data, out, command, spoil, message):
    spoil(data)
    done = fewstep(command, *TINY, model=tiny_model_folder, data=data, out=out)
    assert (done.code, done.out) == (1, "")
    assert re.match(message, done.error), done.error
    assert not out.exists()


# LoRAs


def not_safetensors(tensors, path):
    path.write_text("a LoRA")


def cut_lora(tensors, path):
    save_file(tensors, path)
    cut(path)


def no_up(tensors, path):
    save_file({key: x for key, x in tensors.items() if "lora_up" not in key}, path)


def not_finite(tensors, path):
    key = next(key for key in tensors if "lora_up" in key)
    save_file(tensors | {key: torch.full_like(tensors[key], torch.nan)}, path)


def other_shape(tensors, path):
    key = next(key for key in tensors if "to_k.lora_down" in key)
    save_file(tensors | {key: torch.zeros(2, 24)}, path)


def other_names(tensors, path):
    save_file({key.replace("mid_block", "middle_block"): x for key, x in tensors.items()}, path)


def no_tensors(tensors, path):
    save_file({}, path)


def strange_keys(tensors, path):
    save_file({"weight": torch.zeros(2)}, path)


def damaged_recipe(tensors, path):
    save_file(tensors, path, {"fewstep.recipe": "{"})


LORAS = pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (not_safetensors, r"LoRA .*x\.safetensors is text: 'a LoRA'"),
        (cut_lora, r"LoRA .*x\.safetensors is not a readable safetensors file \("),
        (no_up, r"LoRA .*x\.safetensors: the factors of lora_unet_.* do not fit \(up is missing\)"),
        (not_finite, r"LoRA .*x\.safetensors holds values that are not finite"),
        (
            other_shape,
            r"LoRA .*x\.safetensors does not fit .*: (\d+) of (\d+) modules match; .* is 24 -> \d+, not 16",
        ),
        (other_names, r"LoRA .*x\.safetensors does not fit .*: (\d+) of (\d+) modules match; .*middle_block"),
        (no_tensors, r"LoRA .*x\.safetensors has no LoRA weights"),
        (strange_keys, r"LoRA .*x\.safetensors has "),
        (damaged_recipe, r"the sampling recipe inside .*x\.safetensors is damaged"),
        (lambda tensors, path: None, r"LoRA file not found: .*x\.safetensors"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)


@LORAS
def test_spoilt_loras(fewstep, tiny_model_folder, lora, tmp_path, out, spoil, message):
    path = tmp_path / "x.safetensors"
    spoil(load_file(lora), path)
    done = fewstep("sample", "a cat", model=tiny_model_folder, lora=f"{path}:0.5", out=out)
    assert (done.code, done.out) == (1, "")
    found = re.match(message, done.error)
    assert found, done.error
    if found.groups():
        fitting, modules = map(int, found.groups())
        assert 0 < fitting < modules
        assert modules == sum("lora_up" in key for key in load_file(lora))
    assert done.err == f"error: {done.error}\n\nhint: {done.hint}\n"
    assert not out.exists()


def test_a_weight_that_is_no_number_is_said(fewstep, tiny_model_folder, lora, out):
    for weight in ("nan", "inf", "1e999", "x"):
        done = fewstep("sample", "a cat", model=tiny_model_folder, lora=f"{lora}:{weight}", out=out)
        assert (done.code, done.error) == (2, f"LoRA {lora}:{weight}: {weight!r} is no weight")


def test_a_weight_that_overflows_is_said(fewstep, tiny_model_folder, lora, out):
    done = fewstep("sample", "a cat", model=tiny_model_folder, lora=f"{lora}:1e38", out=out, steps=1)
    assert (done.code, done.out) == (1, "")
    assert "not finite" in done.error
    assert not out.exists()


def test_a_lora_to_begin_with(fewstep, tiny_model_folder, tiny_data_folder, lora, tmp_path, out):
    common = {"model": tiny_model_folder, "data": tiny_data_folder, "out": out}
    done = fewstep("distill", *TINY, **common, init_lora=tmp_path / "x.safetensors")
    assert (done.code, done.error) == (1, f"LoRA file not found: {tmp_path / 'x.safetensors'}")
    done = fewstep("distill", *TINY[2:], **common, rank=3, init_lora=lora)
    assert done.code == 2
    assert done.error == f"--rank 3 differs from {lora}, which has [2]"
    assert done.hint == "use --rank 2"
    done = fewstep("distill", *TINY, **common, modules="attention", init_lora=lora)
    assert done.code == 2
    assert done.error.startswith(f"--modules attention: {lora} also adapts others, such as ")
    assert not out.exists()


# Options that do not go together


def test_options_of_sampling(fewstep, tiny_model_folder, tiny_data_folder, tmp_path, out):
    def refused(message, code=2, **options):
        done = fewstep("sample", "a cat", model=tiny_model_folder, out=out, **options)
        assert (done.code, done.out) == (code, "")
        assert re.match(message, done.error), done.error
        assert not out.exists()
        return done.hint

    assert refused("--width 17 is not a multiple of 2", width=17) == "use 16"
    assert refused("--height 21 is not a multiple of 2", height=21) == "use 20"
    hint = refused("dpm-solver makes 2 network calls a step, but --steps 3 is", solver="dpm-solver", steps=3)
    assert hint == "use a multiple of 2"
    refused("image not found: ", 1, image=tmp_path / "absent.png")
    assert refused("image .* is a folder$", 1, image=tmp_path) == "name one picture"
    refused("unreadable image: ", 1, image=tiny_data_folder / "00.txt")
    if not torch.cuda.is_available():
        refused("--device cuda is not available", 1, device="cuda")


def test_options_of_distilling(fewstep, tiny_model_folder, tiny_data_folder, out):
    def refused(message, **options):
        done = fewstep("distill", *TINY, model=tiny_model_folder, data=tiny_data_folder, out=out, **options)
        assert (done.code, done.out) == (2, "")
        assert re.match(message, done.error), done.error
        assert not out.exists()
        return done.hint

    hint = refused(r"--psi dpm-solver\+\+2m is multistep, and without history it is only DDIM", psi="dpm-solver++2m")
    assert hint == "use ddim, dpm-solver or dpm-solver++ (single-step)"
    refused(r"unknown --psi 'leap'", psi="leap")
    refused(r"--guidance-scale-max 2 is below --guidance-scale", guidance_scale_max=2)
    assert refused(r"--size 17 is not a multiple of 2", size=17) == "use 16"


def test_psi_that_cannot_step_from_pure_noise(fewstep, model, tiny_data_folder, out):
    path = model / "scheduler" / "scheduler_config.json"
    zero_snr = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    path.write_text(json.dumps(json.loads(path.read_text()) | zero_snr))
    done = fewstep("distill", *TINY, model=model, data=tiny_data_folder, out=out, psi="dpm-solver")
    assert done.code == 2
    assert done.error.startswith("dpm-solver divides by alpha")
    assert not out.exists()


# Folders


def test_out_that_is_a_file(fewstep, tiny_model_folder, tiny_data_folder, out):
    out.write_text("precious")
    done = fewstep("distill", *TINY, model=tiny_model_folder, data=tiny_data_folder, out=out)
    assert (done.code, done.error) == (2, f"--out {out} is a file")
    done = fewstep("sample", "a cat", model=tiny_model_folder, steps=1, out=out)
    assert (done.code, done.error) == (2, f"--out {out} is a file")
    done = fewstep("sample", "a cat", model=tiny_model_folder, steps=1, out=out / "below")
    assert (done.code, done.error) == (2, f"--out {out / 'below'} is below {out}, which is a file")
    assert out.read_text() == "precious"


def test_a_folder_that_holds_a_run(fewstep, tiny_model_folder, tiny_data_folder, lora):
    run = lora.parent
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    common = {"model": tiny_model_folder, "data": tiny_data_folder, "out": run}
    done = fewstep("distill", *TINY, **common)
    assert (done.code, done.error) == (2, f"{run} already holds a run")
    assert "--resume" in done.hint
    done = fewstep("distill", *TINY, "--resume", **common, k=10)
    assert (done.code, done.error) == (2, f"--k 10 differs from the run in {run} (20)")
    done = fewstep("distill", *TINY, "--resume", **common, guidance_scale=3)
    assert done.error == f"--guidance-scale 3.0 differs from the run in {run} (8.5)"
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_checkpoints_that_are_damaged(fewstep, tiny_model_folder, tiny_data_folder, lora, tmp_path):
    run = Path(shutil.copytree(lora.parent, tmp_path / "run"))
    cut(run / "checkpoints" / "step-00000002.safetensors")  # the only one
    longer = [*TINY[:5], 3, *TINY[6:]]
    done = fewstep("distill", *longer, "--resume", model=tiny_model_folder, data=tiny_data_folder, out=run)
    assert done.code == 1
    assert re.match(r"cannot resume from .*step-00000002\.safetensors: ", done.error)


# A full disk


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("writer", "file"),
    [
        ("fewstep.io.Path.write_bytes", "config.json"),
        ("fewstep.training.checkpoint.save_file", "checkpoints/step-00000002.safetensors"),
        ("fewstep.lora.writing.write_safetensors", "lora.safetensors"),
    ],
)
def test_a_full_disk_in_training(fewstep, monkeypatch, tiny_model_folder, tiny_data_folder, out, lora, writer, file):
    monkeypatch.setattr(writer, full)
    done = fewstep("distill", *TINY, model=tiny_model_folder, data=tiny_data_folder, out=out)
    assert done.code == 1
    assert done.error == f"no space left to write {out / file}"
    assert done.hint.startswith("free some space")
    assert not (out / file).exists()
    assert hidden(out) == []


def test_a_full_disk_in_encoding(fewstep, monkeypatch, tiny_model_folder, tiny_data_folder, out, tmp_path):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("fewstep.data.cache.store.save_file", full)
    done = fewstep("distill", *TINY, model=tiny_model_folder, data=tiny_data_folder, out=out)
    assert done.code == 1
    assert done.error.startswith(f"no space left to write {tmp_path / 'cache'}")
    assert done.hint == "free some space, or set FEWSTEP_CACHE to a folder on another disk"
    assert not out.exists()
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_a_full_disk_in_sampling(fewstep, monkeypatch, tiny_model_folder, out):
    monkeypatch.setattr("fewstep.io.Path.write_bytes", full)
    done = fewstep("sample", "a cat", model=tiny_model_folder, steps=1, out=out)
    assert (done.code, done.out) == (1, "")
    assert done.error == f"no space left to write {out / 'a-cat-0.png'}"
    assert list(out.iterdir()) == []


def test_a_full_disk_when_a_whole_model_is_saved(fewstep, monkeypatch, tiny_model_folder, tiny_data_folder, out):
    from diffusers import UNet2DConditionModel
    from safetensors import SafetensorError

    def no_room(self, folder):
        Path(folder).mkdir()
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(UNet2DConditionModel, "save_pretrained", no_room)
    done = fewstep("finetune", *TINY, "--full", model=tiny_model_folder, data=tiny_data_folder, out=out)
    assert done.code == 1
    assert done.error == f"no space left to write {out / 'model'}"
    assert not (out / "model").exists()
    assert hidden(out) == []


# Training that goes wrong or is stopped


def test_a_loss_that_is_not_finite(fewstep, monkeypatch, tiny_model_folder, tiny_data_folder, out):
    steps, whole = [], consistency.lcd_loss

    def loss(*arguments):
        steps.append(len(steps) + 1)
        return whole(*arguments) * (torch.nan if len(steps) == 3 else 1)

    monkeypatch.setattr(consistency, "lcd_loss", loss)
    common = {"model": tiny_model_folder, "data": tiny_data_folder, "out": out}
    six = [*TINY[:5], 6, *TINY[6:]]
    done = fewstep("distill", *six, **common)
    checkpoint = out / "checkpoints" / "step-00000002.safetensors"
    assert done.code == 1
    assert done.error == f"the loss is no longer finite at step 3; the last good state is {checkpoint}"
    assert "--resume" in done.hint
    assert all(x.isfinite().all() for x in load_file(checkpoint).values())
    assert not (out / "lora.safetensors").exists()
    assert hidden(out) == []
    done = fewstep("distill", *six, "--resume", **common)
    assert done.code == 0, done.err
    assert len(steps) == 3 + 4  # it went on with step 3
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert (out / "lora.safetensors").exists()


def test_ctrl_c_in_training(tiny_model_folder, tiny_data_folder, cache_folder, out, fewstep):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "FEWSTEP_CACHE": str(cache_folder)}
    options = ["--rank", 2, "--batch-size", 1, "--log-every", 1, "--device", "cpu"]
    typed = ["distill", "--model", tiny_model_folder, "--data", tiny_data_folder, "--out", out, *options]
    command = [sys.executable, "-c", "from fewstep.cli import entry; entry()", *map(str, typed), "--steps", "100000"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        metrics, deadline = out / "metrics.jsonl", time.monotonic() + 120
        while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 2):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline, "training did not begin"
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, output) == (130, "")
    found = re.search(r"(?:^|\n)error: stopped after (\d+) of 100,000 steps, [^\n]+\n\nhint: ([^\n]+)\n\Z", errors)
    assert found, errors
    assert "Traceback" not in errors
    assert found[2] == "run the same command with --resume to continue"
    steps = int(found[1])
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"step-{steps:08d}.safetensors"]
    assert (out / "lora.safetensors").exists()
    assert hidden(out) == []
    before = metrics.read_text().splitlines()
    assert fewstep(*typed, "--resume", steps=steps + 1).code == 0
    after = metrics.read_text().splitlines()
    assert after[:steps] == before  # these steps were not made again: their times are the old ones
    assert [json.loads(line)["step"] for line in after] == list(range(1, steps + 2))


@pytest.fixture
def small_files():
    """Within the test the kernel refuses files above 40 kB: room for a config, not for a checkpoint."""
    resource = pytest.importorskip("resource", reason="POSIX only")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_disk_fills_up_for_real(fewstep, tiny_model_folder, tiny_data_folder, lora, out, small_files):
    done = fewstep("distill", *TINY, model=tiny_model_folder, data=tiny_data_folder, out=out)
    assert done.code == 1
    assert done.error == f"no space left to write {out / 'checkpoints' / 'step-00000002.safetensors'}"
    assert done.hint == "free some space, or choose an --out folder on another disk"
    assert sorted(path.name for path in out.rglob("*")) == ["checkpoints", "config.json", "metrics.jsonl"]


def test_epsilon_prediction_on_a_zero_terminal_snr_schedule(fewstep, model, out):
    path = model / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rescale_betas_zero_snr": True}))
    done = fewstep("sample", "a cat", model=model, out=out)
    assert done.code == 1
    assert "epsilon prediction on a zero-terminal-SNR schedule" in done.error
    assert not out.exists()
