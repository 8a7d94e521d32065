"""merge, resize, difference and inspect, from the command line, on the embedded model's family."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.families import FAMILIES
from fewstep.lora.files import load_adapter
from fewstep.lora.layers import initial
from fewstep.lora.low_rank import Adapter, LowRank
from fewstep.lora.recipe import Recipe
from fewstep.lora.writing import save_adapter

EMOJI = FAMILIES["emoji"]
LCD = Recipe(method="lcd", solver="lcm", steps=4, guidance_scale=1.0, k=20)


def make_lora(path: Path, rank: int, seed: int, recipe: Recipe | None = None, dialect: str = "kohya") -> Adapter:
    """A random LoRA of the emoji family."""
    torch.manual_seed(seed)
    updates = initial(EMOJI.modules(), rank, seed)
    adapter = Adapter({name: LowRank(u.A, torch.randn_like(u.B) * 0.1) for name, u in updates.items()})
    save_adapter(path, adapter, recipe or Recipe(method="denoising"), torch.float32, dialect)
    return adapter


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Adapter, Path, Adapter]:
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    return a, make_lora(a, 2, 0), b, make_lora(b, 3, 1, LCD, "diffusers")


def test_a_merge_is_the_sum_of_its_parts(fewstep, two, tmp_path):
    a, first, b, second = two
    out = tmp_path / "ab.safetensors"
    done = fewstep("merge", f"{a}:0.8,mid=-0.5", f"{b}:1.0", "--json", out=out, dtype="fp32")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert (told["family"], told["rank"], told["modules"]) == ("emoji", 5, len(first.modules))
    merged, recipe = load_adapter(out, EMOJI.all_modules())
    assert (recipe.method, recipe.steps, recipe.family) == ("lcd", 4, "emoji")
    for name, update in merged.modules.items():
        weight = -0.5 if name.startswith("mid_block") else 0.8
        wanted = weight * first.modules[name].delta() + second.modules[name].delta()
        assert (update.delta() - wanted).norm() <= 1e-6 * wanted.norm()
    sources = json.loads(merged.metadata["fewstep.sources"])
    assert [(s["file"], s["weight"]) for s in sources] == [("a.safetensors", 0.8), ("b.safetensors", 1.0)]


def test_what_a_name_told_is_written_into_the_sum(fewstep, two, tmp_path):
    a, _, _, _ = two
    save_file(load_file(a), tmp_path / "lcm-lora.safetensors")  # of others: no recipe
    assert fewstep("merge", tmp_path / "lcm-lora.safetensors", out=tmp_path / "x").code == 0
    _, recipe = load_adapter(tmp_path / "x", EMOJI.all_modules())
    assert (recipe.method, recipe.solver, recipe.steps, recipe.recognised_by) == ("lcd", "lcm", 4, "")


def test_merging_again_gives_the_same_bytes(fewstep, two, tmp_path):
    a, _, b, _ = two
    for name in ("1", "2"):
        assert fewstep("merge", a, f"{b}:0.5", out=tmp_path / name).code == 0
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_resize_says_what_it_loses(fewstep, two, tmp_path):
    a, first, _, _ = two
    done = fewstep("resize", a, "--json", rank=1, out=tmp_path / "small.safetensors", dtype="fp32")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    small, _ = load_adapter(tmp_path / "small.safetensors", EMOJI.all_modules())
    assert {update.rank for update in small.modules.values()} == {1}
    errors = {n: float((u.delta() - first.modules[n].delta()).norm() / first.modules[n].delta().norm())
              for n, u in small.modules.items()}  # fmt: skip
    assert told["worst_error"] == pytest.approx(max(errors.values()), rel=1e-3)
    assert told["mean_error"] == pytest.approx(sum(errors.values()) / len(errors), rel=1e-3)
    assert 0 < told["energy"] < 1


def base_model(folder: Path, seed: int = 0) -> dict[str, torch.Tensor]:
    """The least a model folder needs for arithmetic: the UNet's weights, and a file beside them."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, (out, in_, kernel) in EMOJI.all_modules().items():
        if not name.startswith("text_encoder"):
            tail = (kernel, kernel) if kernel else ()
            weights[f"{name}.weight"] = torch.randn(out, in_, *tail, generator=generator).half()
            weights[f"{name}.bias"] = torch.zeros(out).half()
    (folder / "unet").mkdir(parents=True)
    save_file(weights, folder / "unet" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    (folder / "model_index.json").write_text("{}")
    return weights


def test_into_a_model_and_the_difference_back(fewstep, two, tmp_path):
    a, first, _, _ = two
    weights = base_model(tmp_path / "base")
    done = fewstep("merge", f"{a}:2", into=tmp_path / "base", out=tmp_path / "tuned")
    assert done.code == 0, done.err
    tuned = load_file(tmp_path / "tuned" / "unet" / "diffusion_pytorch_model.safetensors")
    assert (tmp_path / "tuned" / "model_index.json").read_text() == "{}"
    for key, weight in weights.items():
        update = first.modules.get(key.removesuffix(".weight"))
        wanted = weight if update is None else (weight.float() + 2 * update.delta()).half()
        assert torch.equal(tuned[key], wanted)
    done = fewstep("difference", tmp_path / "tuned", tmp_path / "base", rank=2, out=tmp_path / "back.safetensors")
    assert done.code == 0, done.err
    back, _ = load_adapter(tmp_path / "back.safetensors", EMOJI.all_modules())
    assert back.modules.keys() == first.modules.keys()
    for name, update in back.modules.items():
        wanted = 2 * first.modules[name].delta()
        assert (update.delta() - wanted).norm() < 0.02 * wanted.norm()  # the model is in half precision


def test_inspect_tells_what_a_file_is(fewstep, two, tmp_path):
    a, first, b, _ = two
    done = fewstep("inspect", b, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert (told["fits"], told["layout"], told["ranks"]) == (["emoji"], "diffusers", {"3": len(first.modules)})
    assert told["sampling"]["steps"] == 4
    norm = sum(float(u.delta().norm() ** 2) for n, u in first.modules.items() if n.startswith("mid_block")) ** 0.5
    told = json.loads(fewstep("inspect", a, "--json").out)
    assert told["strength"]["mid"] == pytest.approx(norm, rel=1e-4)
    lines = fewstep("inspect", a).out
    assert "fits" in lines
    assert "emoji" in lines


@pytest.mark.parametrize(
    ("typed", "code", "message"),
    [
        (["merge", "--out", "x"], 2, "no LoRA was given"),
        (["merge", "a.safetensors"], 2, "--out is required"),
        (["merge", "nowhere.safetensors", "--out", "x"], 1, "LoRA file not found: nowhere.safetensors"),
        (["merge", "a.safetensors:1,left=2", "--out", "x"], 2, "LoRA a.safetensors:1,left=2: there is no block 'left'"),
        (["merge", "a.safetensors", "--into", "nowhere", "--out", "x"], 1, "model nowhere not found"),
        (["merge", "a.safetensors", "--into", "m", "--rank", "2", "--out", "x"], 2, "--rank and --energy are of LoRA"),
        (
            ["merge", "a.safetensors", "--into", "m", "--out", "a.safetensors"],
            2,
            "--out a.safetensors is already there",
        ),
        (["resize", "a.safetensors", "--out", "x"], 2, "neither --rank nor --energy was given"),
        (["resize", "a.safetensors", "b.safetensors", "--out", "x", "--rank", "1"], 2, "2 LoRAs were given, not one"),
        (["difference", "a", "--out", "x"], 2, "1 models were given, not two"),
        (["inspect"], 2, "no LoRA was given"),
    ],
)
def test_bad_input_gets_one_line(fewstep, two, tmp_path, monkeypatch, typed, code, message):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = fewstep(*typed)
    assert (done.code, done.out) == (code, "")
    assert done.error.startswith(message), done.error
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_with_a_module_of_nowhere_is_refused_or_cut(fewstep, two, tmp_path):
    a, first, _, _ = two
    stray = "lora_unet_down_blocks_9_nowhere"
    extra = {f"{stray}.lora_down.weight": torch.ones(2, 3), f"{stray}.lora_up.weight": torch.ones(4, 2)}
    save_file(load_file(a) | extra, a)
    total = len(first.modules)
    done = fewstep("merge", a, out=tmp_path / "x")
    assert done.code == 1
    assert done.error.endswith(f"does not fit emoji: {total} of {total + 1} modules match; {stray} is not in it")
    done = fewstep("merge", a, "--allow-partial", out=tmp_path / "x")
    assert done.code == 0
    assert f"note: 1 modules of {a} are left out: {stray}" in done.err
    assert len(load_adapter(tmp_path / "x", EMOJI.all_modules())[0].modules) == total


def test_a_whole_folder_is_never_replaced(fewstep, two, tmp_path):
    a, _, _, _ = two
    done = fewstep("merge", a, dialect="peft", out=tmp_path)
    assert (done.code, done.error) == (1, f"{tmp_path} is already there and no PEFT folder")
    assert fewstep("merge", a, dialect="peft", out=tmp_path / "peft").code == 0
    assert fewstep("merge", a, dialect="peft", out=tmp_path / "peft").code == 0  # its own is
    base_model(tmp_path / "base")
    shutil.copytree(tmp_path / "base", tmp_path / "other")
    done = fewstep("merge", a, into=tmp_path / "base", out=tmp_path / "other")
    assert done.code == 2
    assert (tmp_path / "other" / "model_index.json").exists()
