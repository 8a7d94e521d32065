"""merge, resize, difference and inspect, from the command line, on the embedded model's family."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fewstep.families import FAMILIES
from fewstep.hub import title_of
from fewstep.lora.files import load_adapter
from fewstep.lora.layers import initial
from fewstep.lora.low_rank import Adapter, LowRank, widest
from fewstep.lora.recipe import Recipe
from fewstep.lora.writing import save_adapter
from fewstep.models.load import model_recipe

EMOJI = FAMILIES["emoji"]
LCD = Recipe(method="lcd", solver="lcm", steps=4, guidance_scale=1.0, k=20)


def make_lora(
    path: Path,
    rank: int,
    seed: int,
    recipe: Recipe | None = None,
    dialect: str = "kohya",
    dtype: torch.dtype = torch.float32,
) -> Adapter:
    """A random LoRA of the emoji family."""
    torch.manual_seed(seed)
    updates = initial(EMOJI.modules(), rank, seed)
    adapter = Adapter({name: LowRank(u.A, torch.randn_like(u.B) * 0.1) for name, u in updates.items()})
    save_adapter(path, adapter, recipe or Recipe(method="denoising"), dtype, dialect)
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
    done = fewstep("resize", a, "--overwrite", rank=1, out=tmp_path / "small.safetensors", dtype="fp32")
    lines = done.out.splitlines()
    facts = {line[:12].strip(): line[14:] for line in lines}
    assert all(line[12:14] == "  " and line[14] != " " for line in lines)
    for name in ("energy", "mean_error", "worst_error"):
        value, meaning = facts[name.replace("_", " ")].split("  ")
        assert float(value) == pytest.approx(told[name], rel=1e-3)
        assert re.fullmatch(r"\(.+\)", meaning)
    assert facts["worst module"] == told["worst_module"]


def test_a_rank_above_the_most_is_refused_unless_cut(fewstep, two, tmp_path):
    a, _, b, _ = two
    done = fewstep("merge", a, b, max_rank=4, out=tmp_path / "x")
    assert done.code == 1
    assert re.fullmatch(r"the exact sum has rank 5 in \S+, more than --max-rank 4", done.error)
    assert done.hint == "cut it with --rank 64 or --energy 0.99, fold it with --into MODEL, or raise --max-rank"
    for cut in ({"max_rank": 5}, {"max_rank": 4, "rank": 3}, {"max_rank": 1, "energy": 0.9}):
        assert fewstep("merge", a, b, "--overwrite", out=tmp_path / "x", **cut).code == 0


def relicensed(path: Path, **told: str) -> None:
    """The file again, with this metadata."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, metadata | {key.replace("_", ".", 1): value for key, value in told.items()})


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_licences_of_sources_and_their_bases_are_carried(fewstep, two, tmp_path):
    a, _, _, _ = two
    relicensed(a, license="mit", modelspec_license="cc-by-4.0")
    sd = tmp_path / "sd.safetensors"
    make_lora(sd, 2, 2, Recipe(method="denoising", base_model="runwayml/stable-diffusion-v1-5"))
    done = fewstep("merge", a, sd, "lcm", "--json", out=tmp_path / "x", max_rank=100)
    assert done.code == 0, done.err
    wanted = "mit; cc-by-4.0; CreativeML-OpenRAIL-M; Apache-2.0"
    assert json.loads(done.out)["license"] == metadata_of(tmp_path / "x")["license"] == wanted
    assert fewstep("resize", tmp_path / "x", rank=1, out=tmp_path / "y").code == 0
    assert metadata_of(tmp_path / "y")["license"] == wanted
    for name, licence in (("base", "openrail++"), ("tuned", "other\nlicense_name: my-own")):
        base_model(tmp_path / name, seed=len(name))
        (tmp_path / name / "README.md").write_text(f"---\ntags: [x]\nlicense: {licence}\n---\nlicense: none\n")
    assert fewstep("difference", tmp_path / "tuned", tmp_path / "base", rank=1, out=tmp_path / "d").code == 0
    assert metadata_of(tmp_path / "d")["license"] == "my-own; OpenRAIL++-M"
    assert fewstep("merge", a, into=tmp_path / "base", out=tmp_path / "m").code == 0
    told = metadata_of(tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors")
    assert (told["format"], told["license"]) == ("pt", "OpenRAIL++-M; mit; cc-by-4.0")


@pytest.fixture
def dora(tmp_path: Path) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """A DoRA of one module, the model it is for, and the changed weight."""
    weights = base_model(tmp_path / "base")
    name = next(name for name in EMOJI.modules() if name.endswith("attn1.to_q"))
    W0, generator = weights[f"{name}.weight"].float(), torch.Generator().manual_seed(5)
    A, B = torch.randn(2, W0.shape[1], generator=generator), torch.randn(len(W0), 2, generator=generator)
    m = W0.norm(dim=1, keepdim=True) * 1.5
    parts = {"lora_down.weight": A, "lora_up.weight": B, "dora_scale": m}
    save_file(
        {f"lora_unet_{name.replace('.', '_')}.{part}": x for part, x in parts.items()}, tmp_path / "d.safetensors"
    )
    W = W0 + B @ A
    return tmp_path / "d.safetensors", tmp_path / "base", {name: m * W / W.norm(dim=1, keepdim=True) - W0}


def test_a_dora_is_baked_against_the_model_it_is_for(fewstep, dora, tmp_path):
    file, base, delta = dora
    (name, wanted), = delta.items()  # fmt: skip
    done = fewstep("merge", f"{file}:0.5", into=base, out=tmp_path / "tuned")
    assert done.code == 0, done.err
    key, weights = f"{name}.weight", "unet/diffusion_pytorch_model.safetensors"
    before, after = (load_file(folder / weights) for folder in (base, tmp_path / "tuned"))
    torch.testing.assert_close(after[key].float(), before[key].float() + 0.5 * wanted, rtol=1e-3, atol=1e-4)  # fp16
    assert [k for k in before if not torch.equal(before[k], after[k])] == [key]

    small = tmp_path / "small.safetensors"
    done = fewstep("merge", f"{file}:0.5", "--json", model=base, rank=100, dtype="fp32", out=small)
    assert done.code == 0, done.err
    update = load_adapter(small, EMOJI.all_modules())[0].modules[name]
    error = (update.delta() - 0.5 * wanted).norm() / (0.5 * wanted).norm()
    assert update.rank == 100
    assert float(error) == pytest.approx(json.loads(done.out)["worst_error"], rel=1e-3)
    assert json.loads(metadata_of(small)["fewstep.sources"])[0]["baked_against"] == str(base)


def test_inspect_tells_what_a_dora_is_without_its_model_and_how_strong_with_it(fewstep, dora):
    file, base, delta = dora
    told = json.loads(fewstep("inspect", file, "--json").out)
    assert (told["layout"], told["dora"], told["fits"]) == ("kohya, DoRA", True, ["emoji"])
    assert (told["ranks"], told["modules"], told["strength"]) == ({"2": 1}, 1, {})
    lines = fewstep("inspect", file).out.splitlines()
    assert next(x for x in lines if x.startswith("strength")).endswith("as for every DoRA: add --model")
    told = json.loads(fewstep("inspect", file, "--json", model=base).out)
    assert told["ranks"] == {"2": 1}
    assert sum(told["strength"].values()) == pytest.approx(float(next(iter(delta.values())).norm()), rel=1e-3)


def test_a_dora_without_its_model_or_a_rank_is_refused(fewstep, dora, tmp_path):
    file, base, delta = dora
    rank = len(next(iter(delta.values())))
    done = fewstep("merge", file, out=tmp_path / "x")
    assert (done.code, done.hint) == (1, "name that model: fewstep merge FILE --into MODEL, or --model MODEL --rank 64")
    assert "cannot be used alone: it is a DoRA" in done.error
    done = fewstep("merge", file, model=base, max_rank=rank - 1, out=tmp_path / "x")
    assert done.error.startswith(f"the exact sum has rank {rank} in {next(iter(delta))}")


def test_inspect_names_the_base_model_of_a_recipe(fewstep, tmp_path):
    assert json.loads(fewstep("inspect", "lcm", "--json").out)["sampling"]["base_model"] == "emoji"
    make_lora(tmp_path / "x", 1, 0, Recipe(method="denoising", base_model="model", base_sha256="0123456789abcdef" * 4))
    said = json.loads(fewstep("inspect", tmp_path / "x", "--json").out)["sampling"]["base_model"]
    assert said == "model (its UNet's SHA-256 begins with 0123456789ab)"


def test_a_folder_is_called_by_what_says_something(tmp_path):
    for folder, name in {"a/sd": "sd", "runs/x/model": "x/model", "models--me--sd/snapshots/1f": "me/sd"}.items():
        assert title_of(tmp_path / folder) == name


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


def test_a_model_with_an_acceleration_in_it_is_sampled_as_with_the_lora_beside_it(fewstep, two, tmp_path):
    style, _, fast, _ = two
    base = tmp_path / "base"
    base_model(base)
    for loras, expected in (((f"{fast}:1", f"{style}:0.5"), "lcd"), ((f"{style}:1",), None), ((f"{fast}:-1",), None)):
        done = fewstep("merge", *loras, into=base, out=tmp_path / "tuned")
        assert done.code == 0, done.err
        recipe = model_recipe(tmp_path / "tuned")
        assert (recipe and recipe.method) == expected
        shutil.rmtree(tmp_path / "tuned")
    own = Recipe(method="tcd", solver="tcd", steps=2).model_dump_json()
    (base / "fewstep.json").write_text(own)
    assert fewstep("merge", f"{fast}:1", into=base, out=tmp_path / "tuned").code == 0
    assert (tmp_path / "tuned" / "fewstep.json").read_text() == own


def test_a_file_that_other_programs_would_not_find_is_noted(fewstep, two, tmp_path):
    a, _, b, _ = two
    done = fewstep("merge", a, b, out=tmp_path / "both")
    assert (done.code, done.err) == (
        0, f"note: other programs find a LoRA by the ending .safetensors, which {tmp_path / 'both'} lacks\n"
    )  # fmt: skip
    assert fewstep("merge", a, b, out=tmp_path / "both.safetensors").err == ""
    assert fewstep("merge", a, b, out=tmp_path / "folder", dialect="peft").err == ""


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
    assert "Frobenius norm" in lines
    assert "emoji" in lines


def test_a_files_own_words_reach_no_terminal(fewstep, two):
    a, _, _, _ = two
    words = "mit\x1b[2J\x1b]0;you\x07\nfits  all\u202e" + "x" * 9000
    save_file(load_file(a), a, {"license": words, "ss_tag\x1b[31m\n": "{}"})
    done = fewstep("inspect", a)
    assert done.code == 0
    assert all(line.isprintable() and len(line) < 400 for line in done.out.splitlines())
    lines = {line.split("  ", 1)[0]: line for line in done.out.splitlines()}
    assert len(lines) == len(done.out.splitlines())
    assert r"mit\x1b[2J\x1b]0;you\x07\nfits  all\u202exxx" in lines["license"]
    assert lines["license"].endswith(f"... ({len(words):,} characters)")
    assert lines["also says"].endswith(r"ss_tag\x1b[31m\n")
    assert json.loads(fewstep("inspect", a, "--json").out)["metadata"]["license"] == words  # whole, and escaped
    stray = "lora_unet_\x1b[2J\n.lora_down.weight"
    save_file(load_file(a) | {stray: torch.ones(2, 2)}, a)
    done = fewstep("merge", a, out=a.with_name("x"))
    assert r"lora_unet_\x1b[2J\n" in done.error
    assert done.err.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("typed", "code", "message"),
    [
        (["merge", "--out", "x"], 2, "no LoRA was given"),
        (["merge", "a.safetensors"], 2, "--out is required"),
        (["merge", "nowhere.safetensors", "--out", "x"], 1, "LoRA file not found: nowhere.safetensors"),
        (["merge", "a.safetensors:1,left=2", "--out", "x"], 2, "LoRA a.safetensors:1,left=2: unknown block 'left'"),
        (["merge", "a.safetensors", "--into", "nowhere", "--out", "x"], 1, "model nowhere not found"),
        (
            ["merge", "a.safetensors", "--into", "m", "--rank", "2", "--out", "x"],
            2,
            "--rank and --into exclude each other",
        ),
        (
            ["merge", "a.safetensors", "--into", "m", "--out", "a.safetensors"],
            2,
            "--out a.safetensors already exists",
        ),
        (["resize", "a.safetensors", "--out", "x"], 2, "neither --rank nor --energy was given"),
        (["resize", "a.safetensors", "b.safetensors", "--out", "x", "--rank", "1"], 2, "2 LoRAs were given, not one"),
        (["difference", "a", "--out", "x"], 2, "1 models were given, not two"),
        (["inspect"], 2, "no file was given"),
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
    assert f"note: left out of {a}: 1 module, {stray}" in done.err
    assert len(load_adapter(tmp_path / "x", EMOJI.all_modules())[0].modules) == total


def test_a_whole_folder_is_never_replaced(fewstep, two, tmp_path):
    a, _, _, _ = two
    done = fewstep("merge", a, "--overwrite", dialect="peft", out=tmp_path)
    assert (done.code, done.error) == (2, f"--out {tmp_path} already exists")
    base_model(tmp_path / "base")
    shutil.copytree(tmp_path / "base", tmp_path / "other")
    done = fewstep("merge", a, "--overwrite", into=tmp_path / "base", out=tmp_path / "other")
    assert (done.code, done.hint) == (2, "choose another --out")
    assert (tmp_path / "other" / "model_index.json").exists()


@pytest.mark.parametrize("dialect", ["kohya", "peft"])
def test_what_is_there_is_replaced_only_when_asked(fewstep, two, tmp_path, dialect):
    a, _, b, _ = two
    out = tmp_path / "x"
    assert fewstep("merge", b, dialect=dialect, out=out).code == 0
    weights = out / "adapter_model.safetensors" if dialect == "peft" else out
    for typed in (("merge", a), ("resize", b, "--rank", 1)):
        before = weights.read_bytes()
        done = fewstep(*typed, dialect=dialect, out=out)
        assert (done.code, done.error) == (2, f"--out {out} already exists")
        assert done.hint == "choose another --out, or add --overwrite"
        assert weights.read_bytes() == before
        assert fewstep(*typed, "--overwrite", dialect=dialect, out=out).code == 0
        assert weights.read_bytes() != before
    assert fewstep("merge", out, "--overwrite", dialect=dialect, out=out).code == 0  # onto itself
    difference = ("difference", "nowhere", "nowhere")
    assert fewstep(*difference, dialect=dialect, out=out).error == f"--out {out} already exists"
    assert fewstep(*difference, "--overwrite", dialect=dialect, out=out).error.startswith("model nowhere not found")


TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.mark.parametrize(
    ("stored", "asked", "written"),
    [
        (["fp32"], None, "fp32"),
        (["bf16"], None, "bf16"),
        (["fp16", "bf16"], None, "fp32"),  # neither holds the other
        (["fp32"], "fp16", "fp16"),
    ],
)
def test_a_sum_is_written_as_the_widest_of_its_parts(fewstep, tmp_path, stored, asked, written):
    files = [tmp_path / f"{i}.safetensors" for i, _ in enumerate(stored)]
    named = zip(files, stored, strict=True)
    adapters = [make_lora(file, 2, seed, dtype=TYPES[name]) for seed, (file, name) in enumerate(named)]
    option = {} if asked is None else {"dtype": asked}
    told = json.loads(fewstep("merge", *files, "--json", out=tmp_path / "x", **option).out)
    assert told["dtype"] == written
    assert {x.dtype for x in load_file(tmp_path / "x").values()} == {TYPES[written]}
    if stored == ["fp32"] and asked is None:
        merged, _ = load_adapter(tmp_path / "x", EMOJI.all_modules())
        assert all(torch.equal(u.delta(), adapters[0].modules[n].delta()) for n, u in merged.modules.items())


def test_the_widest_type():
    e4, f16, b16, f32, f64 = torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.float32, torch.float64
    assert [widest(types) for types in ([], [e4], [e4, f16], [e4, b16])] == [f16, f16, f16, b16]
    assert [widest(types) for types in ([f16, f32], [b16, f16], [f64], [f64, b16])] == [f32] * 4


def test_a_file_converted_to_another_dialect_says_what_it_said(fewstep, tmp_path):
    said = {"modelspec.trigger_phrase": "sks dog", "ss_tag_frequency": "{}", "license": "CC-BY-4.0"}
    make_lora(tmp_path / "a.safetensors", 2, 0)
    save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", said | {"ss_network_dim": "9"})
    for dialect in ("kohya", "diffusers"):
        done = fewstep("merge", tmp_path / "b.safetensors", out=tmp_path / dialect, dialect=dialect)
        assert done.code == 0, done.err
        with safe_open(tmp_path / dialect, "pt") as file:
            metadata = file.metadata()
        assert metadata.items() >= (said | {"ss_network_dim": "2"}).items()


def test_a_lora_of_another_family_is_taken_as_the_named_model_s_with_a_note(fewstep, tmp_path):
    make_lora(tmp_path / "a.safetensors", 2, 0, LCD.model_copy(update={"family": "sd15"}))
    done = fewstep("merge", tmp_path / "a.safetensors", model="emoji", out=tmp_path / "b.safetensors")
    assert (done.code, "a.safetensors was made for sd15; here it is used for emoji" in done.err) == (0, True)
    assert load_adapter(tmp_path / "b.safetensors", EMOJI.all_modules())[1].family == "emoji"
