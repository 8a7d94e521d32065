"""export --to openvino|onnx: the folder draws what the model with its LoRAs draws, here and in OpenVINO GenAI."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.bridge.export import export
from fewstep.configs import ExportConfig, build
from fewstep.errors import FewstepError, UsageError
from fewstep.models.exported import GRAPH_FILES, MANIFEST
from fewstep.session import Session
from tests.bridge.test_export import LCD, PROMPT, RECIPES, a_lora, drawn_by_us
from tests.tiny import tiny_model

PARTS = {"unet", "text_encoder", "vae_decoder", "vae_encoder"}
both = pytest.mark.parametrize("to", GRAPH_FILES)


@pytest.fixture(scope="module")
def fast(tmp_path_factory, tiny_model_folder) -> Path:
    """An LCM-LoRA of the tiny model, on convolutions and the timestep's embedding too."""
    return a_lora(tmp_path_factory.mktemp("lora") / "fast.safetensors", tiny_model_folder, LCD, 1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_model_folder, fast) -> dict[str, tuple[Path, dict]]:
    """Target -> the folder, and the facts that the export returned."""
    made = {}
    for to in GRAPH_FILES:
        out = tmp_path_factory.mktemp("exported") / to
        consumer = "genai" if to == "openvino" else "any"
        values = {"model": str(tiny_model_folder), "loras": (str(fast),), "to": to, "consumer": consumer}
        made[to] = out, export(build(ExportConfig, out=out, **values))
    return made


@both
def test_the_folder_draws_what_the_model_draws(exported, tiny_model_folder, fast, to):
    folder, facts = exported[to]
    assert facts["relative_error"].keys() == PARTS
    assert all(0 < error < (5e-3 if to == "openvino" else 1e-5) for error in facts["relative_error"].values())
    assert {path.parent.name for path in folder.glob(f"*/{GRAPH_FILES[to]}")} == PARTS
    ours = drawn_by_us(tiny_model_folder, (str(fast),), 3)
    with Session(str(folder), engine=to, dtype="fp32") as session:
        (picture,) = session.draw(PROMPT, seed=3)
        assert (picture.recipe["solver"], picture.recipe["steps"], picture.recipe["guidance_scale"]) == ("lcm", 4, 1.0)
    torch.testing.assert_close(picture.pixels, ours, rtol=0, atol=5e-3 if to == "openvino" else 1e-4)
    assert (ours - drawn_by_us(tiny_model_folder, (), 3)).abs().max() > 0.05  # the LoRA is seen


GENAI = """
import sys
import numpy as np
from fewstep.engines.openvino import library
library()
import openvino_genai
folder, prompt, out = sys.argv[1:]
pipe = openvino_genai.Text2ImagePipeline(folder, "CPU", INFERENCE_PRECISION_HINT="f32")
how = {"num_inference_steps": 4, "guidance_scale": 1.0, "width": 16, "height": 16}
np.save(out, pipe.generate(prompt, generator=openvino_genai.TorchGenerator(3), **how).data)
"""


def test_openvino_genai_draws_the_same_picture(exported, tmp_path):
    """GenAI cuts grey levels down where fewstep rounds them, so that up to one level lies between."""
    folder, _ = exported["openvino"]
    with Session(str(folder), engine="openvino", dtype="fp32") as session:
        (picture,) = session.draw(PROMPT, seed=3)
    subprocess.run([sys.executable, "-c", GENAI, folder, PROMPT, tmp_path / "theirs.npy"], check=True)
    theirs = torch.from_numpy(np.load(tmp_path / "theirs.npy"))[0]
    levels = (picture.pixels.permute(1, 2, 0) + 1) * 127.5
    assert (theirs - levels).abs().max() < 1.05
    assert levels.std() > 20


@both
def test_auto_is_the_engine_of_the_folder_without_a_note(exported, to, capsys):
    with Session(str(exported[to][0]), dtype="fp32") as session:
        assert session.engine.runtime.name == to
    assert "auto" not in capsys.readouterr().err


@both
def test_what_the_folder_cannot_do_is_refused(fewstep, tmp_path, exported, fast, to):
    folder, _ = exported[to]
    other = next(name for name in GRAPH_FILES if name != to)
    for options, code, message in (
        ({"engine": "torch"}, 1, f"{folder} was exported for {to} and has no weights for torch"),
        ({"engine": other}, 1, f"{folder} was exported for {to} and has no weights for torch"),
        ({"engine": to, "lora": fast}, 2, f"{folder} was exported, and no LoRA can be plugged into it"),
        ({"engine": to, "solver": "dpm-solver"}, 1, "the exported network takes whole timesteps"),
    ):
        done = fewstep("sample", PROMPT, model=folder, out=tmp_path, **options)
        assert (done.code, done.error[: len(message)]) == (code, message)
    assert fewstep("distill", model=folder, out=tmp_path / "run", data=tmp_path).code == 1


def test_a_folder_of_another_version_or_without_a_part_is_refused(tmp_path, exported):
    folder = shutil.copytree(exported["onnx"][0], tmp_path / "folder")
    manifest = json.loads((folder / MANIFEST).read_text())
    shutil.rmtree(folder / "vae_encoder")
    with Session(str(folder), engine="onnx", dtype="fp32") as session:
        with pytest.raises(FewstepError, match=r"vae_encoder.* cannot be read"):
            session.engine.encode(torch.zeros(1, 3, 16, 16))
    shutil.rmtree(folder / "vae_decoder")
    with pytest.raises(FewstepError, match="has no vae_decoder folder"):
        Session(str(folder), engine="onnx")
    (folder / MANIFEST).write_text(json.dumps(manifest | {"layout": 99}))
    with pytest.raises(FewstepError, match="has layout 99, and this fewstep reads layout 1"):
        Session(str(folder), engine="onnx")


def test_a_network_that_differs_is_not_exported(tmp_path, monkeypatch, tiny_model_folder, fast):
    real, paths = torch.onnx.export, []

    def exported(module, arguments, path, **options):
        paths.append(path)
        return real(spoilt(module), arguments, path, **options)

    monkeypatch.setattr(torch.onnx, "export", exported)
    with pytest.raises(FewstepError, match="text_encoder gives other outputs in onnx than in torch"):
        export(build(ExportConfig, model=str(tiny_model_folder), loras=(str(fast),), out=tmp_path / "out", to="onnx"))
    assert list(tmp_path.iterdir()) == []
    assert all(isinstance(path, str) for path in paths)  # torch takes more than 2 GiB of weights only so


def spoilt(module: torch.nn.Module) -> torch.nn.Module:
    """The module, with one weight changed."""
    with torch.no_grad():
        next(weight for weight in module.parameters() if weight.ndim == 2).mul_(1.5)
    return module


@pytest.mark.parametrize(
    ("recipe", "prediction", "message"),
    [
        (RECIPES["tcd"], "epsilon", "OpenVINO GenAI has no counterpart of the tcd solver"),
        (LCD, "v_prediction", "OpenVINO GenAI's LCM scheduler takes only models that predict epsilon"),
        (LCD.model_copy(update={"k": 10}), "epsilon", "OpenVINO GenAI's LCM scheduler steps at 999, 759, 499, 259"),
    ],
)
def test_what_genai_would_sample_wrongly_is_refused(tmp_path, recipe, prediction, message):
    model = tiny_model(tmp_path / "base", prediction_type=prediction)
    (model / "fewstep.json").write_text(recipe.model_dump_json())
    values = {"model": str(model), "out": tmp_path / "out", "to": "openvino"}
    with pytest.raises(UsageError, match=message) as caught:
        export(build(ExportConfig, consumer="genai", **values))
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


def test_options_without_effect_are_refused(fewstep, tmp_path):
    for options, message in (
        ({"for": "genai"}, "--for needs --to openvino"),
        ({"for": "genai", "to": "onnx"}, "--for needs --to openvino"),
        ({"dtype": "fp16"}, "--dtype has no effect with --to diffusers"),
    ):
        done = fewstep("export", out=tmp_path / "out", **options)
        assert (done.code, done.error[: len(message)]) == (2, message)
