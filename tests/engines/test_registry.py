"""A new engine is one file: it is found, chosen, drawn with, and refuses what it cannot do before it loads."""

from pathlib import Path

import pytest
import torch

from fewstep import engines
from fewstep.configs import Where, build
from fewstep.engines import chosen, engine_names, for_changing_loras, suits_openvino
from fewstep.engines.torch import TorchEngine
from fewstep.errors import UsageError
from fewstep.models.load import BF16_INSTRUCTIONS, fast_dtype
from fewstep.session import Session

TOY = '''
"""An engine without a network: every picture is of one grey."""

from contextlib import nullcontext
from pathlib import Path

import torch

from fewstep.diffusion.guidance import Conditioning
from fewstep.diffusion.schedule import schedule_from_config
from fewstep.engines.engine import Capabilities, Facts

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class ToyEngine:
    supports = Capabilities(fields=frozenset({"image"}))
    shapes, device, dtype = {}, torch.device("cpu"), "fp32"

    def __init__(self, where):
        schedule = schedule_from_config(SCHEDULE)
        self.facts = Facts(Path(where.model), "custom", schedule, "sample", None, 16, 16, 8, 4, False)

    @classmethod
    def open(cls, where):
        return cls(where)

    def embed(self, texts, height, width):
        return Conditioning(torch.zeros(len(texts), 1, 1))

    def network(self, options):
        return nullcontext(lambda x, t, conditioning: torch.full_like(x, 0.25))

    def encode(self, pixels):
        return torch.zeros(len(pixels), 4, 2, 2)

    def decode(self, latents):
        return latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)

    def hides(self, pixels):
        return False

    def original_weight(self, module):
        raise KeyError(module)

    def plug(self, terms):
        assert not terms


ENGINE = ToyEngine
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's file, in a folder where engines are looked for."""
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setattr(engines, "__path__", [*engines.__path__, str(tmp_path)])


def test_an_engine_is_one_file(toy, fewstep, tmp_path):
    assert engine_names() == ["compiled", "onnx", "openvino", "torch", "toy"]
    with Session("nothing", engine="toy") as session:
        first, second = session.draw(["a cat", "a dog"], steps=2, solver="ddim", guidance_scale=1)
    assert first.pixels.shape == (3, 16, 16)
    assert first.pixels.unique().tolist() == pytest.approx([0.25])
    assert second.recipe["seed"] == 1
    done = fewstep("sample", "a cat", engine="toy", model="nothing", steps=1, out=tmp_path / "images")
    assert (done.code, len(list((tmp_path / "images").iterdir()))) == (0, 1)


def test_what_it_cannot_do_is_refused_before_it_loads(toy, monkeypatch):
    with pytest.raises(UsageError, match="the toy engine does not take"), Session("nothing", engine="toy") as session:
        session.draw("a cat", negative_prompt="a dog", nag_scale=5)
    monkeypatch.setattr("fewstep.engines.toy.ToyEngine.open", lambda where: pytest.fail("loaded"))
    with pytest.raises(UsageError, match="the toy engine does not take"):
        Session("nothing", ["lcm"], engine="toy")


def test_an_unknown_engine_is_refused_with_those_there_are():
    with pytest.raises(UsageError, match="unknown engine 'steam'") as caught:
        Session("nothing", engine="steam")
    assert caught.value.hint == "known ones: auto, compiled, onnx, openvino, torch"


@pytest.mark.parametrize("instruction", [*BF16_INSTRUCTIONS, None])
def test_the_fast_precision_is_one_that_the_processor_has(monkeypatch, instruction):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {instruction: True}, raising=False)
    assert fast_dtype(torch.device("cpu")) == (torch.bfloat16 if instruction else torch.float32)
    assert fast_dtype(torch.device("cuda")) == torch.float16
    assert TorchEngine.supports.replug_at_once


WHERE = {"device": "cpu", "loras": ()}


@pytest.fixture
def real_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """--engine auto chooses as it does outside tests."""
    monkeypatch.setattr("fewstep.engines.suits_openvino", suits_openvino)


@pytest.mark.usefixtures("real_choice")
@pytest.mark.parametrize(
    ("where", "name"),
    [
        ({}, "openvino"),
        ({"dtype": "fp32"}, "openvino"),
        ({"live_lora": True}, "torch"),
        ({"controlnet": "somewhere"}, "torch"),
        ({"device": "mps"}, "torch"),
        ({"engine": "onnx"}, "onnx"),
    ],
)
def test_auto_is_the_fastest_engine_that_has_what_is_asked_for(where, name):
    assert chosen(build(Where, **(WHERE | where))) == name


@pytest.mark.usefixtures("real_choice")
def test_auto_is_torch_where_openvino_is_not_or_a_gpu_is(monkeypatch, tiny_pixels_folder):
    where = build(Where, loras=())
    assert chosen(build(Where, model=str(tiny_pixels_folder), **WHERE)) == "torch"
    monkeypatch.setattr("fewstep.engines.pick_device", lambda name: torch.device("cuda"))
    assert chosen(where) == "torch"
    monkeypatch.undo()
    monkeypatch.setattr("fewstep.engines.find_spec", lambda name: None)
    assert suits_openvino(where) is False
    assert [for_changing_loras(name) for name in ("auto", "openvino")] == ["torch", "openvino"]


@pytest.mark.usefixtures("real_choice")
def test_auto_is_noted_once_and_goes_over_to_torch_for_what_openvino_lacks(tiny_model_folder, capsys):
    options = {"steps": 1, "solver": "ddim", "guidance_scale": 1.0, "negative_prompt": "a dog"}
    with Session(str(tiny_model_folder), (), device="cpu", dtype="fp32") as session:
        (fast,) = session.draw("a cat", **(options | {"negative_prompt": ""}))
        (slow,) = session.draw("a cat", **options, nag_scale=5)
        (after,) = session.draw("a cat", **(options | {"negative_prompt": ""}))
    notes = capsys.readouterr().err
    assert notes.count("engine auto is openvino here") == 1
    assert "the openvino engine does not take --nag-scale: torch draws from here on" in notes
    assert [one.recipe["engine"] for one in (fast, slow, after)] == ["openvino", "torch", "torch"]
    torch.testing.assert_close(fast.pixels, after.pixels, rtol=0, atol=1e-3)
    assert (slow.pixels - after.pixels).abs().max() > 1e-3
