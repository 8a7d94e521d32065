"""The program: help that says everything, mistakes in one line and a hint, images that can be drawn again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep import __version__
from fewstep.cli.app import COMMANDS, config_of, main_of, refuse_loose_lora
from fewstep.configs import DoctorConfig, SampleConfig, option_name
from fewstep.io import atomic_path, sha256_file

ROOT = Path(__file__).parents[2]
USAGE_ERROR = re.compile(r"error: [^\n]+\n\nhint: [^\n]+\n")


@pytest.fixture(scope="module")
def drawing(tiny_model_folder, tmp_path_factory):
    """Arguments that draw with the tiny model in two steps."""
    return ["--model", tiny_model_folder, "--steps", 2, "--device", "cpu"]


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def recipe(path):
    with Image.open(path) as image:
        return json.loads(image.text["fewstep"])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option(fewstep, command):
    done = fewstep(*command.split(), "--help")
    assert (done.code, done.err) == (0, "")
    shown = set(re.findall(r"--[a-z0-9-]+", done.out))
    kind = config_of(command)
    assert shown == {
        option_name(field) for field in kind.model_fields if kind.argument is None or field != kind.argument[0]
    }
    assert "--no-" not in done.out.replace("--no-safety-checker", "")  # its own name
    assert "--empty-" not in done.out
    words = " ".join(re.sub("[│╭╮╰╯─]", " ", done.out).split())
    assert " ".join(kind.__doc__.split()) in words
    assert all(ord(symbol) != 0x1B for symbol in done.out)


def test_help_of_the_program_names_every_command(fewstep):
    done = fewstep("--help")
    assert (done.code, done.err) == (0, "")
    group = fewstep("data", "--help")
    assert all(re.search(rf"│ {command}  +\S", group.out) for command in ("check", "encode"))
    shown = re.findall(r"^│ ([a-z]+)  +\S", done.out, re.MULTILINE)
    assert shown == list(
        dict.fromkeys(command.split()[0] for command in COMMANDS)
    )  # in this order: the first comes first
    assert fewstep().out == done.out  # without a command the help is what is wanted
    assert fewstep("--version").out.strip() == __version__


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("sample x --model m --stepz 2", r"unknown option: --stepz\. Did you mean --steps\?"),
        ("sample x --model m --no-json", r"unknown option: --no-json"),
        ("sample x --model m -q", r"unknown option: -q"),
        ("smaple x", r'unknown command "smaple"\. Did you mean "sample"\?$'),
        ("sample", r"no prompt was given"),
        ("sample --model m", r"no prompt was given"),
        ("distill --data d --out o", r"--model is required"),
        ("distill --model m --data d", r"--out is required"),
        ("distill --model m --data d --out o stray", r"stray belongs to no option$"),
        ("sample x\udcff --model m", r"PROMPT x\\udcff is not UTF-8 text"),  # how Python hands on the byte FF
        ("sample x --negative-prompt \udcff", r"--negative-prompt \\udcff is not UTF-8 text"),
        ("distill --model m --out o --data d\udcff", r"--data d\\udcff is not UTF-8 text"),
        ("sample x --model", r"--model needs a value$"),
        ("distill --model --data", r"--model needs a value$"),
        ("sample x --model m --steps two", r"--steps two: input should be a valid integer"),
        ("sample x --model m --steps 2.5", r"--steps 2\.5: input should be a valid integer"),
        ("sample x --model m --steps 0", r"--steps 0: input should be greater than or equal to 1"),
        ("sample x --model m --steps 2000", r"--steps 2000: input should be less than or equal to 1000"),
        ("sample x --model m --seed -1", r"--seed -1: input should be greater than or equal to 0"),
        ("sample x --model m --strength 0", r"--strength 0: input should be greater than 0"),
        ("sample x --model m --strength 1.5", r"--strength 1\.5: input should be less than or equal to 1"),
        ("sample x --model m --guidance-scale 99", r"--guidance-scale 99: input should be less than or equal to 50"),
        ("sample x --model m --guidance-scale nan", r"--guidance-scale nan: input should be a finite number$"),
        ("sample x --model m --strength 0.5", r"--strength needs --image$"),
        ("sample x --lora lcm 0.8", r"--lora lcm 0\.8: the weight stands apart from the file$"),
        ("stream x --frames f --lora=lcm -1", r"--lora lcm -1: the weight stands apart from the file$"),
        ("export --lora lcm 1 --to onnx --out o", r"--lora lcm 1: the weight stands apart from the file$"),
        ("sample x --lora lcm noto-mono:0.5", r"--lora lcm noto-mono:0\.5: only one LoRA follows --lora$"),
        ("sample x --model m --fooo 2", r"unknown option: --fooo$"),
        ("distill --model m --data d --out o --resolution 512", r"unknown option: --resolution$"),
        (
            "distill --pretrained_teacher_model m --lora_rank 8",
            r"unknown options: --pretrained_teacher_model, --lora_rank$",
        ),
        ("sample x --model m --solver leap", r"--solver leap: input should be 'auto', 'ddim', 'euler'"),
        ("sample x --model m --device tpu", r"--device tpu: input should be 'auto', 'cpu'"),
        ("distill --model m --data d --out o --guidance-scale 0.5", r"--guidance-scale 0\.5: .* equal to 1"),
        ("distill --model m --data d --out o --steps 0", r"--steps 0: input should be greater"),
        ("distill --model m --data d --out o --train-steps 5", r"unknown option: --train-steps"),
        ("distill --model m --data d --out o --k 0", r"--k 0: input should be greater"),
        ("finetune --model m --data d --out o --psi ddim", r"unknown option: --psi"),
        ("doctor --as-json", r"unknown option: --as-json"),
        ("data check", r"0 sources were given, not one$"),
        ("data check a b", r"2 sources were given, not one$"),
        ("data chekc a", r'unknown command "chekc"\. Did you mean "check"\?'),
        ("data check a --where score", r"--where score: this is no comparison: score$"),
        ("distill --synthetic --model m --out o --min-size 9", r"--min-size needs --data$"),
    ],
)
def test_usage_errors(fewstep, monkeypatch, tmp_path, typed, message):
    monkeypatch.chdir(tmp_path)
    done = fewstep(*typed.split())
    assert done.code == 2
    assert done.out == ""
    assert USAGE_ERROR.fullmatch(done.err), done.err
    assert re.match(message, done.error), done.error
    assert not re.search(r"https?:|errors\.pydantic|\[type=", done.err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "typed", ["7", "7 --lora lcm", "x --lora lcm:0.5 7", "--lora lcm 7th x", "--seed 7 --lora=lcm x"]
)
def test_other_numbers_are_prompts(typed):
    refuse_loose_lora(["sample", *typed.split()])


def test_the_hint_of_a_value_out_of_range_is_the_range(fewstep):
    assert fewstep("sample", "x", steps=0).hint == "the range: from 1 to 1,000"
    assert fewstep("sample", "x", strength=2, image="x").hint == "the range: above 0, at most 1"
    assert fewstep("distill", model="m", data="d", out="o", steps=0).hint == "the range: at least 1"


def test_every_other_error_is_exit_code_1(fewstep):
    done = fewstep("sample", "x", model="/nowhere")
    assert (done.code, done.out) == (1, "")
    assert USAGE_ERROR.fullmatch(done.err)
    assert done.error == "model /nowhere not found"


def test_the_installed_program_exits_with_the_code():
    environment = {"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", "from fewstep.cli import entry; entry()", "sample"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no prompt was given\n\nhint: ")


@pytest.mark.parametrize(
    ("own", "found"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_threads_do_not_spin_long_unless_told_to(own, found):
    environment = {"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "PATH": "/usr/bin:/bin"} | own
    told = "from os import environ; print(environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    code = (
        f"import sys; from fewstep.cli import app as cli; cli.main = lambda: 0; sys.exit = print; cli.entry(); {told}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == f"0\n{found} False\n"


def test_ctrl_c_and_a_program_of_one_command(capsys):
    def stopped(config):
        raise KeyboardInterrupt

    assert main_of(DoctorConfig, stopped, ["--json"]) == 130
    assert capsys.readouterr() == ("", "error: stopped\n\nhint: no half-written file was left\n")


def test_a_termination_signal_is_ctrl_c(capsys, tmp_path):
    def asked_to_end(config):
        with atomic_path(tmp_path / "file") as temporary:
            temporary.write_text("half")
            signal.raise_signal(signal.SIGTERM)  # to this very thread: another one would let it sleep first
            time.sleep(5)

    before = signal.getsignal(signal.SIGTERM)
    assert main_of(DoctorConfig, asked_to_end, []) == 130
    assert capsys.readouterr() == ("", "error: stopped\n\nhint: no half-written file was left\n")
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_options_arrive_in_the_config():
    got = []
    typed = "a fox;--model;m;--lora;a.safetensors:0.5;b cat;--lora=b.safetensors;--json;--seed;7;--out;x y"
    assert main_of(SampleConfig, got.append, typed.split(";")) == 0
    config = SampleConfig(
        prompts=("a fox", "b cat"),
        model="m",
        loras=("a.safetensors:0.5", "b.safetensors"),
        as_json=True,
        seed=7,
        out="x y",
    )
    assert got == [config]
    assert got[0].model_fields_set == config.model_fields_set


def test_json_is_one_document_with_the_recipe(fewstep, drawing, tmp_path):
    done = fewstep("sample", "a red fox, (running)!", *drawing, "--json", out=tmp_path, seed=5)
    assert (done.code, done.err) == (0, "")
    [image] = json.loads(done.out)["images"]
    assert image["file"] == str(tmp_path / "a-red-fox-running-5.png")
    assert image["prompt"] == "a red fox, (running)!"
    assert (image["seed"], image["steps"], image["solver"]) == (5, 2, "dpm-solver++")
    assert (image["guidance_scale"], image["nfe"], image["timesteps"]) == (7.5, 4, [999, 499])
    assert (image["width"], image["height"], image["dtype"], image["lora"]) == (16, 16, "fp32", [])
    assert {"file": image["file"], **recipe(image["file"])} == image
    assert [path.name for path in tmp_path.iterdir()] == ["a-red-fox-running-5.png"]


def test_file_names_go_to_stdout_one_a_line(fewstep, drawing, tmp_path):
    done = fewstep("sample", "a cat", "a dog", *drawing, out=tmp_path, count=2, seed=3)
    assert done.code == 0
    names = ["a-cat-3.png", "a-cat-4.png", "a-dog-5.png", "a-dog-6.png"]
    assert done.out.splitlines() == [str(tmp_path / name) for name in names]
    assert [recipe(path)["seed"] for path in done.out.splitlines()] == [3, 4, 5, 6]


def test_a_picture_is_never_written_over_another(fewstep, drawing, tmp_path):
    typed = ["sample", "ein großes 狐", *drawing, "--out", tmp_path]
    first, other, again = (fewstep(*typed, "--guidance-scale", scale).out.strip() for scale in (1, 3, 3))
    assert (first, other) == (str(tmp_path / "ein-großes-狐-0.png"), str(tmp_path / "ein-großes-狐-0-2.png"))
    assert again == other  # to the bit, so that one file is enough
    assert [recipe(path)["guidance_scale"] for path in (first, other)] == [1, 3]
    assert sorted(map(str, tmp_path.iterdir())) == [other, first]


def test_files_are_named_in_letters_that_the_terminal_lacks(drawing, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONIOENCODING": "ascii"}
    typed = ["sample", "狐", *map(str, drawing), "--engine", "torch", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "fewstep", *typed], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path}/\\u72d0-0.png\n"


def test_the_same_seed_gives_the_same_bytes(fewstep, drawing, tmp_path):
    paths = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        done = fewstep("sample", "a cat", *drawing, out=tmp_path / name, seed=seed)
        paths.append(Path(done.out.strip()))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert (pixels(paths[0]) != pixels(paths[2])).any()


@pytest.mark.parametrize("solver", ["ddim", "lcm"])
def test_an_image_does_not_depend_on_batch_size_or_neighbours(fewstep, drawing, tmp_path, solver):
    def draw(name, *prompts, **options):
        done = fewstep("sample", *prompts, *drawing, "--solver", solver, out=tmp_path / name, **options)
        return [pixels(path) for path in done.out.splitlines()]

    together = draw("together", "a cat", "a dog", count=2)
    for size in (1, 3):
        others = draw(f"in-{size}s", "a cat", "a dog", count=2, batch_size=size)
        assert max(np.abs(a - b).max() for a, b in zip(together, others, strict=True)) <= 2
    beside = draw("beside", "a fish", "a house", "a dog", "a fish")
    assert np.abs(beside[2] - together[2]).max() <= 2
    [alone] = draw("alone", "a dog", seed=2)
    assert np.abs(alone - together[2]).max() <= 2
    assert np.abs(together[0] - together[1]).max() > 2  # the bound is not met by any two images


@pytest.mark.parametrize("strength", [0.05, 0.3, 1.0])
@pytest.mark.parametrize(("solver", "steps"), [("ddim", 3), ("dpm-solver", 4), ("lcm", 5)])
def test_image_to_image_makes_the_steps_asked(
    fewstep, tiny_model_folder, tiny_data_folder, tmp_path, strength, solver, steps
):
    done = fewstep(
        "sample",
        "a cat",
        "--json",
        model=tiny_model_folder,
        solver=solver,
        steps=steps,
        guidance_scale=1,
        image=tiny_data_folder / "00.png",
        strength=strength,
        out=tmp_path,
    )
    [image] = json.loads(done.out)["images"]
    assert (image["steps"], image["nfe"], image["strength"]) == (steps, steps, strength)
    assert image["timesteps"][0] < 1000 * strength
    start = tiny_data_folder / "00.png"
    assert image["image"] == {"sha256": sha256_file(start), "file": str(start)}


def test_low_strength_stays_nearer_to_the_picture(fewstep, drawing, tiny_data_folder, tmp_path):
    images = []
    for strength in (0.001, 0.05, 1.0):
        start = ["--image", tiny_data_folder / "00.png", "--strength", strength, "--guidance-scale", 1]
        done = fewstep("sample", "a cat", *drawing, *start, out=tmp_path / str(strength))
        images.append(pixels(done.out.strip()))
    near, far = (np.abs(images[0] - image).mean() for image in images[1:])
    assert 0 < near < far


def test_sizes(fewstep, drawing, tmp_path):
    done = fewstep("sample", "a cat", *drawing, "--json", out=tmp_path, width=24, height=12)
    [image] = json.loads(done.out)["images"]
    assert (image["width"], image["height"]) == (24, 12)
    with Image.open(image["file"]) as opened:
        assert opened.size == (24, 12)


def test_notes_go_to_stderr(fewstep, drawing, tmp_path):
    done = fewstep("sample", "a cat", *drawing, "--json", out=tmp_path, negative_prompt="a dog", guidance_scale=1)
    assert done.code == 0
    assert done.err == "note: the negative prompt has no effect at guidance 1: --nag-scale 5 makes it work\n"
    assert json.loads(done.out)["images"][0]["negative_prompt"] == "a dog"


def test_fresh_noise_is_asked_for_and_noted(fewstep, drawing, tmp_path):
    paths = [
        fewstep("sample", "a cat", *drawing, "--solver", "ddim", out=tmp_path / str(eta), eta=eta).out.strip()
        for eta in (0, 0.5)
    ]
    assert (recipe(paths[1])["eta"], recipe(paths[1])["gamma"]) == (0.5, None)
    assert (pixels(paths[0]) != pixels(paths[1])).any()
    done = fewstep("sample", "a cat", *drawing, "--solver", "ddim", out=tmp_path, gamma=0.5)
    assert (done.code, done.error) == (2, "--gamma belongs to the tcd solver, but the solver is ddim")


def test_the_negative_prompt_matters_with_guidance(fewstep, drawing, tmp_path):
    plain = fewstep("sample", "a cat", *drawing, out=tmp_path / "plain").out.strip()
    other = fewstep("sample", "a cat", *drawing, out=tmp_path / "other", negative_prompt="a cat").out.strip()
    unguided = fewstep("sample", "a cat", *drawing, out=tmp_path / "unguided", guidance_scale=1).out.strip()
    assert (pixels(plain) != pixels(other)).any()
    # away from the prompt itself, guidance has no direction left
    assert np.abs(pixels(other) - pixels(unguided)).max() <= 2


def test_doctor(fewstep):
    done = fewstep("doctor")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert all(line.startswith("ok ") for line in lines)
    assert {line.split()[1] for line in lines} >= {
        "fewstep",
        "torch",
        "diffusers",
        "safetensors",
        "cpu",
        "cache",
        "hub",
    }


def test_doctor_json(fewstep, cache_folder):
    done = fewstep("doctor", "--json")
    findings = {finding["what"]: finding for finding in json.loads(done.out)}
    assert findings["cache"]["ok"] is True
    assert findings["cache"]["value"].startswith(str(cache_folder))
    assert __version__ in findings["fewstep"]["value"]
    assert findings["hub"] == {
        "what": "hub",
        "value": f"offline by HF_HUB_OFFLINE, cache {cache_folder / 'hub'}",
        "ok": True,
        "hint": "",
    }


def test_doctor_prunes_what_is_old_and_can_be_made_again(fewstep, cache_folder):
    kept = [cache_folder / "compare" / "new.safetensors", cache_folder / "emoji" / "old.safetensors"]
    gone = [cache_folder / "compare" / "old.safetensors", cache_folder / "encoded" / "old.safetensors"]
    networks = [cache_folder / "engines" / name for name in ("openvino-unet-new", "openvino-unet-old")]
    for folder in networks:
        folder.mkdir(parents=True)
        (folder / "openvino_model.bin").write_bytes(b"x")
    os.utime(networks[1], (0, time.time() - 8 * 86400))
    for file in [*kept, *gone]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
        if file.stem == "old":
            os.utime(file, (0, time.time() - 8 * 86400))
    done = fewstep("doctor", "--prune", "7")
    assert done.code == 0
    assert "deleted from" in done.err
    assert [file.exists() for file in [*kept, *gone]] == [True, True, False, False]
    assert [folder.exists() for folder in networks] == [True, False]
    assert fewstep("doctor", "--prune", "-1").code == 2


def test_doctor_says_what_is_bad(fewstep, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "file"))
    done = fewstep("doctor")
    assert done.code == 1
    assert re.search(r"^BAD  cache +cannot write ", done.out, re.MULTILINE)
    assert done.error == "not ready: cache"
    assert done.hint == "set FEWSTEP_CACHE to a folder you can write to"
    assert [finding["ok"] for finding in json.loads(fewstep("doctor", "--json").out)].count(False) == 1
