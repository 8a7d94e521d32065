"""The engines openvino and onnx agree with torch, keep what they built, and refuse in one line what they cannot do."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fewstep.configs import Draw, Where, build
from fewstep.diffusion.guidance import Conditioning, concatenate, with_guidance
from fewstep.engines import Engine, NetworkOptions, open_engine
from fewstep.engines.graphs.engine import GraphEngine
from fewstep.engines.onnx import ONNX
from fewstep.engines.openvino import OpenVINO, without
from fewstep.errors import FewstepError, UsageError
from fewstep.lora.recipe import Recipe
from fewstep.metrics.psnr import psnr
from fewstep.models.exported import GRAPH_FILES
from fewstep.models.graphs import graph_of
from fewstep.models.load import load_model
from fewstep.models.network import embed_guidance
from fewstep.session import Session
from tests.bridge.test_export import a_lora
from tests.tiny import tiny_model, tiny_sdxl

PROMPTS = ("a red cat", "a blue house", "the dog", "a drawing of a fish")
STYLE = Recipe(method="denoising")
INT8_DB, BF16_DB, FP32_DB = 28, 35, 50  # PSNR of emoji's pictures to those of torch in float32: the median, at least
RUNTIMES = {"openvino": OpenVINO, "onnx": ONNX}
both = pytest.mark.parametrize("name", RUNTIMES)


def engine(name: str, model: Path | str, **where: object) -> Engine:
    """The engine with a model, in float32 unless `where` differs."""
    return open_engine(build(Where, **({"model": str(model), "engine": name, "dtype": "fp32", "loras": ()} | where)))


def inputs(one: Engine, height: int, width: int, rows: int = 2) -> tuple[Tensor, Tensor, Conditioning]:
    """Noise, timesteps between those of the table, and texts for pictures of this size in pixels."""
    facts, generator = one.facts, torch.Generator().manual_seed(0)
    x = torch.randn(rows, *facts.latent_shape(height, width), generator=generator)
    t = torch.linspace(999, 0.5, rows)
    conditioning = concatenate([one.embed([text], height, width) for text in PROMPTS[:rows]])
    if facts.embeds_guidance:
        conditioning = with_guidance(conditioning, torch.linspace(2, 9, rows))
    if facts.inpaints:
        kept = torch.randn(rows, 1 + facts.channels, *x.shape[2:], generator=generator)
        conditioning = conditioning._replace(mask_and_latents=kept)
    return x, t, conditioning


def outputs(one: Engine, height: int, width: int, rows: int = 2) -> dict[str, Tensor]:
    """What every network of an engine makes of the same inputs."""
    x, t, conditioning = inputs(one, height, width, rows)
    with one.network(NetworkOptions()) as network, torch.no_grad():
        output = network(x, t, conditioning)
    pixels = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1
    named = {"text": conditioning.text, "network": output, "decoder": one.decode(x), "encoder": one.encode(pixels)}
    return named if conditioning.pooled is None else named | {"pooled": conditioning.pooled}


def with_guidance_input(folder: Path) -> Path:
    """A tiny model whose network takes guidance as an input."""
    from diffusers import UNet2DConditionModel

    tiny_model(folder)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    torch.manual_seed(1)
    embed_guidance(unet)
    torch.nn.init.normal_(unet.time_embedding.cond_proj.weight, std=0.1)
    unet.save_pretrained(folder / "unet")
    return folder


MODELS: dict[str, Callable[[Path], Path]] = {
    "sd15": tiny_model,
    "sdxl": tiny_sdxl,
    "inpainting": lambda folder: tiny_model(folder, unet={"in_channels": 9}),
    "guidance as an input": with_guidance_input,
}


@pytest.mark.parametrize("kind", MODELS)
def test_every_network_is_torchs(tmp_path, kind):
    model = MODELS[kind](tmp_path / "model")
    ours = engine("torch", model)
    sizes = ((16, 16, 2), (18, 22, 3)) if kind == "sd15" else ((18, 22, 2),)  # 22 px are 11 latents, which is odd
    for height, width, rows in sizes:
        expected = outputs(ours, height, width, rows)
        assert all(value.std() > 0.01 for value in expected.values())  # there is something to compare
        for theirs in (engine(name, model) for name in RUNTIMES):
            assert (theirs.shapes, theirs.dtype, theirs.facts.family) == (ours.shapes, "fp32", ours.facts.family)
            assert theirs.facts.latent_shape(height, width) == ours.facts.latent_shape(height, width)
            for part, value in outputs(theirs, height, width, rows).items():
                torch.testing.assert_close(value, expected[part], rtol=1e-3, atol=2e-4)


def pictures(session: Session, **draw: object) -> Tensor:
    """Pixels of two pictures."""
    options = {"steps": 2, "solver": "ddim", "guidance_scale": 3.0, "negative_prompt": "a fish"} | draw
    return torch.stack([picture.pixels for picture in session.draw(PROMPTS[:2], **options)])


@both
def test_loras_are_built_in_once_and_taken_out_exactly(name, tmp_path, tiny_model_folder, monkeypatch, capsys):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    lora = a_lora(tmp_path / "style.safetensors", tiny_model_folder, STYLE, 2)
    expected = {}
    with Session(str(tiny_model_folder), (), engine="torch", dtype="fp32") as session:
        for weight in (None, 0.7):
            session.plug([] if weight is None else [f"{lora}:{weight}"])
            expected[weight] = pictures(session)
    with Session(str(tiny_model_folder), (), engine=name, dtype="fp32") as session:
        assert not session.engine.supports.replug_at_once
        bare = pictures(session)
        with session.plugged(f"{lora}:0.7"):
            torch.testing.assert_close(pictures(session), expected[0.7], rtol=0, atol=1e-3)
        assert torch.equal(pictures(session), bare)
    torch.testing.assert_close(bare, expected[None], rtol=0, atol=1e-3)
    assert (expected[0.7] - expected[None]).abs().max() > 0.01
    monkeypatch.setattr(RUNTIMES[name], "write", lambda *_: pytest.fail("built again"))
    assert capsys.readouterr().err.count(f"the networks were built for {name} in ") == 2
    with Session(str(tiny_model_folder), [f"{lora}:0.7"], engine=name, dtype="fp32") as session:
        torch.testing.assert_close(pictures(session), expected[0.7], rtol=0, atol=1e-3)


def test_a_picture_to_start_from_and_a_mask(tmp_path, tiny_model_folder):
    from tests.tiny import tiny_images

    image, mask = ((tiny_images(tmp_path / "images", 2) / f"0{i}.png").read_bytes() for i in range(2))
    drawn = []
    for name in ("torch", *RUNTIMES):
        with Session(str(tiny_model_folder), (), engine=name, dtype="fp32") as session:
            drawn.append(pictures(session, image=image, mask=mask, strength=0.5))
    for theirs in drawn[1:]:
        torch.testing.assert_close(theirs, drawn[0], rtol=0, atol=1e-3)


EMOJI = ["a red fox", "a blue fish", "a green apple", "a rocket", "a slice of pizza", "an owl", "a black car"]


def test_emojis_pictures_are_torchs():
    """In bf16 too, where the processor has it."""
    native = OpenVINO("cpu", "auto").dtype
    drawn = {}
    for name, dtype in (("torch", "fp32"), ("onnx", "fp32"), ("openvino", "fp32"), ("openvino", native)):
        with Session(engine=name, dtype=dtype, device="cpu") as session:
            drawn[name, dtype] = torch.stack([picture.pixels for picture in session.draw(EMOJI)])
    expected = drawn["torch", "fp32"]
    floors = {"fp32": FP32_DB, "bf16": BF16_DB}
    for (name, dtype), pixels in drawn.items():
        if name != "torch":
            assert psnr(expected, pixels).median() >= floors[dtype]
    assert psnr(expected, expected.roll(1, 0)).median() < BF16_DB / 2


def test_emojis_pictures_in_int8_are_near_torchs_and_a_second_start_builds_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    with Session(engine="torch", dtype="fp32", device="cpu") as session:
        expected = torch.stack([picture.pixels for picture in session.draw(EMOJI)])
    with Session(engine="openvino", dtype="int8", device="cpu") as session:
        pixels = torch.stack([picture.pixels for picture in session.draw(EMOJI)])
        assert session.engine.dtype == "int8"
    assert psnr(expected, pixels).median() >= INT8_DB
    assert psnr(expected, pixels).median() < BF16_DB + 5  # it is in int8
    printed = capsys.readouterr()
    assert printed.out == ""  # nncf's progress bars
    assert "the networks were built for openvino in " in printed.err
    monkeypatch.setattr(OpenVINO, "write", lambda *_: pytest.fail("built again"))
    with Session(engine="openvino", dtype="int8", device="cpu") as session:
        assert torch.equal(torch.stack([picture.pixels for picture in session.draw(EMOJI)]), pixels)


def test_int8_is_another_graph_of_the_unet_alone():
    folders = []
    for dtype in ("auto", "int8"):
        one = engine("openvino", "emoji", dtype=dtype, device="cpu")
        assert isinstance(one, GraphEngine)
        folders.append({name: one._folder(name) for name in ("text_encoder", "unet", "vae_decoder")})
    assert [name for name in folders[0] if folders[0][name] != folders[1][name]] == ["unet"]


def test_a_decoder_that_overflows_computes_again_in_float32(tiny_model_folder, monkeypatch):
    one = engine("openvino", tiny_model_folder)
    assert isinstance(one, GraphEngine)
    x = inputs(one, 16, 16)[0]
    expected, asked = one.decode(x), []
    one.model.vae.to(torch.bfloat16)
    real = one._graph("vae_decoder")

    def overflowing(given, exact=False):
        asked.append(exact)
        made = real(given, exact)
        return made if exact else {name: torch.full_like(value, torch.nan) for name, value in made.items()}

    monkeypatch.setattr(one, "_running", {"vae_decoder": (one._folders["vae_decoder"], overflowing)})
    assert torch.equal(one.decode(x), expected)
    assert asked == [False, True]


@pytest.mark.parametrize(
    ("name", "where", "message"),
    [
        ("openvino", {"live_lora": True}, "the openvino engine does not take"),
        ("onnx", {"controlnet": "somewhere"}, "the onnx engine does not take"),
        ("openvino", {"device": "cuda"}, "the engine openvino does not run on"),
        ("openvino", {"device": "gpu"}, "OpenVINO finds no gpu on this machine"),
        ("openvino", {"dtype": "fp16"}, "OpenVINO does not compute in"),
        *(
            (name, {"dtype": "int8"}, f"the {name} engine does not compute in")
            for name in ("torch", "compiled", "onnx")
        ),
        ("onnx", {"device": "gpu"}, "the engine onnx does not run on"),
        ("onnx", {"device": "directml"}, "this build of ONNX Runtime does not have"),
        ("onnx", {"device": "cpu", "dtype": "bf16"}, "the engine onnx does not compute in"),
    ],
)
def test_what_it_cannot_do_is_refused_before_anything_is_loaded(monkeypatch, name, where, message):
    monkeypatch.setattr("fewstep.engines.graphs.engine.load_model", lambda *_, **__: pytest.fail("loaded"))
    native = OpenVINO("cpu", "fp32")._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if where.get("dtype") == "fp16" and "FP16" in native:
        pytest.skip("this processor computes in fp16")
    with pytest.raises((UsageError, FewstepError), match=message) as caught:
        engine(name, "emoji", **where)
    assert caught.value.hint


def test_an_exported_folder_is_not_quantized(monkeypatch):
    monkeypatch.setattr("fewstep.engines.graphs.engine.exported_for", lambda _: "openvino")
    with pytest.raises(UsageError, match="int8 is made of the model that it was exported from"):
        engine("openvino", "somewhere", dtype="int8")


def test_int8_without_its_package_is_refused_with_the_install_line(monkeypatch):
    monkeypatch.setattr("fewstep.engines.graphs.engine.load_model", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(FewstepError, match="int8 needs the package nncf") as caught:
        engine("openvino", "emoji", dtype="int8")
    assert caught.value.hint == 'pip install "fewstep[int8]"'
    with pytest.raises(UsageError, match="the torch engine does not compute in") as caught:
        engine("auto", "emoji", dtype="int8")
    assert 'pip install "fewstep[int8]"' in str(caught.value.hint)


@both
def test_nag_is_refused(name, tiny_model_folder):
    with Session(str(tiny_model_folder), (), engine=name, dtype="fp32") as session:
        with pytest.raises(UsageError, match=f"the {name} engine does not take"):
            session.plan(build(Draw, prompts=("x",), negative_prompt="y", nag_scale=5))


@pytest.mark.parametrize(("name", "package"), [("openvino", "openvino"), ("onnx", "onnx"), ("onnx", "onnxruntime")])
def test_a_missing_package_is_named_with_its_install_line(fewstep, tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    done = fewstep("sample", "a cat", engine=name, out=tmp_path)
    assert done.code == 1
    assert done.error.startswith(f"the engine {name} needs the package")
    assert done.hint == f'pip install "fewstep[{name}]"'


def test_it_sends_no_telemetry():
    assert "openvino_telemetry" not in sys.modules
    with without("json"):  # which was imported before
        assert sys.modules["json"] is not None
    with without("no_such_package"), pytest.raises(ImportError):
        import no_such_package  # noqa: F401
    assert "no_such_package" not in sys.modules


TWO_ENGINES_END = """
import gc, os, signal, sys
from fewstep.configs import Where
from fewstep.engines import open_engine

engines = [open_engine(Where(model=sys.argv[1], engine="openvino", dtype="fp32")) for _ in range(2)]
for engine in engines:
    engine.embed(["a"], 16, 16)
while engines:
    engine = None
    engines.pop(0)
    gc.collect()
signal.signal(signal.SIGUSR1, lambda *_: print("heard"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_a_process_survives_a_signal_after_two_engines_of_openvino_have_ended(tiny_model_folder):
    done = subprocess.run([sys.executable, "-c", TWO_ENGINES_END, tiny_model_folder], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr


@both
def test_a_damaged_graph_is_named(name, tiny_model_folder):
    one = engine(name, tiny_model_folder)
    one.embed(["a"], 16, 16)
    folder = one._folders["text_encoder"]
    (folder / GRAPH_FILES[name]).write_text("<net")
    with pytest.raises(FewstepError, match="cannot be read"):
        engine(name, tiny_model_folder).embed(["a"], 16, 16)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    assert engine(name, tiny_model_folder).embed(["a"], 16, 16).text.isfinite().all()


def test_onnx_computes_the_unet_in_half_precision_for_a_gpu(tmp_path, tiny_model_folder):
    """On this processor ONNX Runtime computes fp16 by way of fp32, so that what a GPU runs can be tried here."""
    runtime = ONNX("cpu", "fp32", half=True)
    model = load_model(str(tiny_model_folder))
    graph = graph_of(model, "unet")
    x = {name: torch.randn_like(value) for name, value in graph.example.items()} | {
        "timestep": torch.tensor([999.0, 1])
    }
    with torch.no_grad():
        expected = graph.module(**x)
    runtime.write(graph, tmp_path)
    output = runtime.read(tmp_path)(x)["out_sample"]
    assert 1e-5 < (output - expected).norm() / expected.norm() < 5e-3


@pytest.mark.parametrize(
    ("there", "device", "dtype"), [(["CUDA", "CPU"], "cuda", "fp16"), (["Dml", "CPU"], "directml", "fp16")]
)
def test_onnx_takes_the_gpu_that_its_build_has(monkeypatch, there, device, dtype):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [f"{name}ExecutionProvider" for name in there])
    assert (ONNX("auto", "auto")._device, ONNX("auto", "auto").dtype) == (device, dtype)
    assert ONNX("cpu", "auto").dtype == "fp32"


@both
def test_a_model_in_pixel_space_is_refused_before_it_is_loaded(name, tiny_pixels_folder, monkeypatch):
    monkeypatch.setattr("fewstep.engines.graphs.engine.load_model", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UsageError, match=f"the {name} engine does not run a model in pixel space"):
        engine(name, tiny_pixels_folder)
