"""The engine compiled draws what torch draws, and other LoRAs do not compile anything again."""

import pytest
import torch
from torch import Tensor

from fewstep.configs import Draw, Where, build
from fewstep.diffusion.guidance import Conditioning
from fewstep.engines import open_engine
from fewstep.engines.compiled import KEPT, Stepped, blocks_of, check_compiler
from fewstep.engines.engine import NetworkOptions
from fewstep.errors import FewstepError, UsageError
from fewstep.lora.recipe import Recipe
from fewstep.session import Session
from tests.bridge.test_export import a_lora

# torch's own use of its older compiler, when inductor is imported.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> None:
    """Nothing is kept in the user's folders."""
    monkeypatch.setenv(KEPT, str(tmp_path / "compiled"))


def pictures(session: Session) -> Tensor:
    """Pixels of two pictures in one batch."""
    options = {"steps": 2, "solver": "ddim", "guidance_scale": 1.0}
    return torch.stack([picture.pixels for picture in session.draw(["a red cat", "the dog"], **options)])


@pytest.mark.long
def test_pictures_are_torchs_and_other_loras_do_not_compile_again(tmp_path, tiny_model_folder):
    lora = a_lora(tmp_path / "style.safetensors", tiny_model_folder, Recipe(method="denoising"), 2)
    loras = [[], [f"{lora}:0.7"], [f"{lora}:-1"]]
    expected = []
    with Session(str(tiny_model_folder), (), engine="torch", dtype="fp32", device="cpu") as session:
        for names in loras:
            session.plug(names)
            expected.append(pictures(session))
    with Session(str(tiny_model_folder), (), engine="compiled", dtype="fp32", device="cpu") as session:
        assert session.engine.supports.replug_at_once
        pictures(session)
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        assert before > 0
        with torch.compiler.set_stance("fail_on_recompile"):
            for names, value in zip(loras, expected, strict=True):
                session.plug(names)
                torch.testing.assert_close(pictures(session), value, rtol=0, atol=1e-3)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before
    assert (expected[1] - expected[0]).abs().max() > 0.01
    assert torch._dynamo.config.recompile_limit < 100  # as it was before


def test_every_repeated_block_is_compiled_when_it_first_runs(tiny_model_folder, capsys):
    where = build(Where, model=str(tiny_model_folder), engine="compiled", dtype="fp32", device="cpu", loras=())
    one = open_engine(where)
    blocks = [*blocks_of(one.model.unet), *blocks_of(one.model.vae.decoder)]
    assert len(blocks) > 8
    assert all(block._compiled_call_impl is not None for block in blocks)
    assert all(block._compiled_call_impl is None for block in blocks_of(one.model.vae.encoder))
    assert "what is compiled is kept in" in capsys.readouterr().err
    with one.network(NetworkOptions()) as network:
        assert torch._dynamo.config.recompile_limit > 100
        assert network.unet is one.model.unet


def test_an_output_of_cuda_graphs_is_copied():
    kept = torch.ones(1, 4, 2, 2)
    output = Stepped(lambda x, t, conditioning: kept)(kept, torch.ones(1), Conditioning(kept))
    kept.zero_()
    assert output.unique().tolist() == [1]


def test_what_it_cannot_do_is_refused_before_anything_is_loaded(monkeypatch, tiny_model_folder):
    monkeypatch.setattr("fewstep.engines.torch.load_model", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UsageError, match="the compiled engine does not take --live-lora"):
        Session("emoji", engine="compiled", live_lora=True)
    with pytest.raises(UsageError, match="does not run on"):
        check_compiler(torch.device("mps"))
    monkeypatch.setattr("fewstep.engines.compiled.find_spec", lambda name: None)
    with pytest.raises(FewstepError, match="needs the package triton"):
        check_compiler(torch.device("cuda"))

    def no_compiler() -> str:
        raise RuntimeError("none")

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", no_compiler)
    with pytest.raises(FewstepError, match=r"needs a C\+\+ compiler on a CPU"):
        Session("emoji", engine="compiled", device="cpu")


def test_nag_is_refused(tiny_model_folder):
    with Session(str(tiny_model_folder), (), engine="compiled", dtype="fp32", device="cpu") as session:
        with pytest.raises(UsageError, match="the compiled engine does not take --nag-scale"):
            session.plan(build(Draw, prompts=("x",), negative_prompt="y", nag_scale=5))
