"""What rounding takes from a LoRA: the share against its definition, who is told, and the live branch that keeps it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fewstep import accelerate
from fewstep.families import FAMILIES
from fewstep.lora.layers import initial, layers_of, target_shapes
from fewstep.lora.low_rank import Adapter, LowRank
from fewstep.lora.recipe import Recipe
from fewstep.lora.rounding import BOUND, loss_note, lost_share
from fewstep.lora.writing import save_adapter
from fewstep.models.load import load_model
from fewstep.models.plugging import ATTACHED, attach
from tests import pipes
from tests.lora.updates import fold
from tests.pipes import draw, random_lora, row_named
from tests.sessions import session

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
TEXT = row_named("text-to-image")


def network(dtype: torch.dtype, out: int = 160) -> nn.ModuleDict:
    torch.manual_seed(0)
    layers = {"a": nn.Linear(96, out), "b": nn.Conv2d(8, out, 3), "c": nn.Linear(48, 12)}
    return nn.ModuleDict(layers).to(dtype).requires_grad_(False)


def updates(net: nn.ModuleDict, size: float) -> dict[str, LowRank]:
    """Random ones, each `size` times as large as its weight."""
    found = {}
    for name, layer in net.items():
        weight = layer.weight.float()
        A, B = torch.randn(4, *weight.shape[1:]), torch.randn(len(weight), 4, *(1,) * (weight.ndim - 2))
        found[name] = LowRank(A, B * float(size * weight.norm() / LowRank(A, B).delta().norm()))
    return found


def defined(net: nn.ModuleDict, before: dict[str, torch.Tensor], whole: dict[str, torch.Tensor]) -> float:
    """1 - <folded - base, dW> / <dW, dW> of all values, in float64."""
    moved = {name: net[name].weight.double() - before[name].double() for name in whole}
    kept = sum(float((moved[name] * whole[name].double()).sum()) for name in whole)
    return 1 - kept / sum(float(x.double().square().sum()) for x in whole.values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, *FP8])
@pytest.mark.parametrize("size", [1e-4, 1e-3, 1e-2])
def test_the_share_is_what_its_definition_says(dtype: torch.dtype, size: float) -> None:
    net = network(dtype)
    before = {name: layer.weight.clone() for name, layer in net.items()}
    first, second = updates(net, size), updates(net, size)
    lost = lost_share(fold(net, [(0.5, first), (-0.8, {"a": second["a"]})]))
    whole = {name: 0.5 * update.delta() for name, update in first.items()}
    whole["a"] = whole["a"] - 0.8 * second["a"].delta()
    assert list(lost) == [dtype]
    assert lost[dtype] == pytest.approx(defined(net, before, whole), abs=0.1)  # of 16 rows of 160 alone
    assert dtype.itemsize < 4 or abs(lost[dtype]) < 1e-3


def test_of_few_rows_all_are_looked_at() -> None:
    net = network(torch.bfloat16, out=16)
    before = {name: layer.weight.clone() for name, layer in net.items()}
    weak = updates(net, 1e-3)
    lost = lost_share(fold(net, [(1.0, weak)]))
    assert lost[torch.bfloat16] == pytest.approx(
        defined(net, before, {n: u.delta() for n, u in weak.items()}), abs=1e-5
    )
    assert BOUND < lost[torch.bfloat16] < 1


def test_types_are_told_apart_and_the_worst_is_said() -> None:
    net = network(torch.float32)
    net["a"].bfloat16()
    lost = lost_share(fold(net, [(1.0, updates(net, 3e-4))]))
    assert abs(lost[torch.float32]) < 1e-3 < BOUND < lost[torch.bfloat16]
    share = f"{lost[torch.bfloat16]:.0%}"
    assert (
        loss_note(lost, "do this") == f"{share} of what the LoRAs add is lost: bfloat16 weights round it away; do this"
    )


def test_nothing_is_said_of_what_comes_in_and_of_nothing() -> None:
    net = network(torch.bfloat16)
    assert loss_note(lost_share(fold(net, [(1.0, updates(net, 0.1))])), "x") is None
    assert lost_share(fold(net, [(0.0, updates(net, 0.1))])) == {}
    assert loss_note({}, "x") is None


# --- who is told, and the way out ---------------------------------------------------------------------------


def weak_lora(path: Path, folder: Path, size: float) -> Path:
    """A LoRA of a model's UNet, each module's `size` times as large as the weight."""
    unet = load_model(str(folder)).unet
    layers = nn.ModuleDict({name.replace(".", "|"): layers_of(unet)[name] for name in target_shapes(unet)})
    weak = {name.replace("|", "."): update for name, update in updates(layers, size).items()}
    save_adapter(path, Adapter(weak), Recipe(method="lcd", solver="lcm", steps=2, guidance_scale=1.0), torch.float32)
    return path


def test_sample_tells_it_and_live_loras_lose_nothing(fewstep, tiny_model_folder: Path, tmp_path: Path) -> None:
    lora = weak_lora(tmp_path / "x.safetensors", tiny_model_folder, 5e-4)
    half = shutil.copytree(tiny_model_folder, tmp_path / "half")
    load_model(str(half), torch.bfloat16).unet.save_pretrained(half / "unet")
    options = {"model": half, "lora": lora, "dtype": "bf16", "device": "cpu", "out": tmp_path / "images"}
    done = fewstep("sample", "a cat", "--json", **options)
    assert "of what the LoRAs add is lost: bfloat16 weights round it away; sample --live-lora keeps it" in done.err
    assert json.loads(done.out)["images"][0]["live_lora"] is False
    done = fewstep("sample", "a cat", "--live-lora", "--json", **options)
    assert (done.code, "lost" in done.err) == (0, False)
    assert json.loads(done.out)["images"][0]["live_lora"] is True


def test_what_is_stored_finely_is_rounded_once(tiny_model_folder: Path, tmp_path: Path) -> None:
    """W0 + Delta W of a model stored in float32: on average nothing of Delta W is lost, however weak it is."""
    lora = weak_lora(tmp_path / "x.safetensors", tiny_model_folder, 5e-4)
    with session(tiny_model_folder, [str(lora)], dtype="bf16") as opened:
        assert abs(opened.engine._folding.lost[torch.bfloat16]) < BOUND


def test_live_and_folded_draw_the_same(tiny_model_folder: Path, tmp_path: Path) -> None:
    lora = str(weak_lora(tmp_path / "x.safetensors", tiny_model_folder, 0.3))
    x, t, text = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 5, 16)
    bare, folded, live = (
        session(tiny_model_folder, loras, live_lora=live).engine.model.unet(x, t, text).sample
        for loras, live in (([], False), ([f"{lora}:0.8", lora], False), ([f"{lora}:0.8", lora], True))
    )
    torch.testing.assert_close(live, folded, rtol=1e-4, atol=1e-4)
    assert (folded - bare).abs().max() > 0.01


def test_merge_into_a_model_tells_it(fewstep, tmp_path: Path) -> None:
    shapes = {n: s for n, s in FAMILIES["emoji"].all_modules().items() if not n.startswith("text_encoder")}
    (tmp_path / "base" / "unet").mkdir(parents=True)
    file = "unet/diffusion_pytorch_model.safetensors"
    sizes = {name: (s.out, s.in_, *((s.kernel, s.kernel) if s.kernel else ())) for name, s in shapes.items()}
    weights = {f"{name}.weight": torch.randn(size) for name, size in sizes.items()}
    save_file({key: x.to(torch.float8_e4m3fn) for key, x in weights.items()}, tmp_path / "base" / file)
    made = initial(FAMILIES["emoji"].modules(), 1, 0)
    lora = Adapter({name: LowRank(u.A, torch.randn_like(u.B)) for name, u in made.items()})
    save_adapter(tmp_path / "x.safetensors", lora, Recipe(method="denoising"))
    for weight, told in ((0.02, True), (3, False)):
        out = tmp_path / str(weight)
        done = fewstep("merge", f"{tmp_path / 'x.safetensors'}:{weight}", "--json", into=tmp_path / "base", out=out)
        assert done.code == 0, done.err
        assert (json.loads(done.out)["lost_in_rounding"] > BOUND) is told
        assert ("float8_e4m3fn weights round it away" in done.err) is told
        assert load_file(out / file)["conv_in.weight"].dtype == torch.float8_e4m3fn


@pytest.mark.filterwarnings("ignore")
def test_accelerate_tells_it_when_it_folds(capsys, tmp_path: Path) -> None:
    pipe = pipes.build(TEXT, "sd15").to(torch.bfloat16)
    lora = f"{random_lora(tmp_path / 'x.safetensors', pipe)}:0.001"
    with accelerate(pipe, lora, folded=True):
        assert "bfloat16 weights round it away; folded=False keeps it" in capsys.readouterr().err
    with accelerate(pipe, lora):
        assert "round" not in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("storage", FP8)
def test_beside_fp8_storage_loras_keep_the_computing_type(tmp_path: Path, storage: torch.dtype) -> None:
    pipe = pipes.build(TEXT, "sd15").to(torch.bfloat16)
    lora = random_lora(tmp_path / "x.safetensors", pipe)
    for name, layer in layers_of(pipe.unet).items():
        if "norm" not in name:
            layer.weight.data = layer.weight.to(storage).to(torch.bfloat16)
    with accelerate(pipe, lora):
        wanted = draw(pipe, TEXT)
    bare = draw(pipe, TEXT, num_inference_steps=4)
    pipe.unet.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.bfloat16)
    with accelerate(pipe, lora):
        live = draw(pipe, TEXT)
    assert (live - wanted).abs().max() < 0.05 * (live - bare).abs().max()


def test_the_type_of_what_is_beside() -> None:
    net = network(torch.float16)
    net["a"].to(torch.float8_e4m3fn)
    net["b"].weight = nn.Parameter(net["b"].weight.to(torch.int8), requires_grad=False)
    live = attach(
        net, [(1.0, Adapter({name: LowRank(torch.ones(1, 2), torch.ones(2, 1)) for name in "abc"}))], torch.bfloat16
    )
    types = {name: factor.dtype for name, factor in live.parameters_of(ATTACHED).items()}
    assert [types[f"{name}/A"] for name in "abc"] == [torch.bfloat16, torch.bfloat16, torch.float16]
    live.remove()
    assert not any(layer._forward_hooks for layer in net.values())
