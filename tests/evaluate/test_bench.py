"""fewstep bench: parts add up, operations are counted, what is missing is marked, and nothing is left behind."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fewstep.configs import BenchConfig, build
from fewstep.engines import engine_names
from fewstep.errors import FewstepError, UsageError
from fewstep.evaluate.bench import plan as plan_file
from fewstep.evaluate.bench import run, turn
from fewstep.evaluate.bench.arrangements import GUIDE, TUNED, Opened, TimedBatch
from fewstep.evaluate.bench.plan import BenchPlan, Flops, count_flops, planned
from fewstep.evaluate.bench.process import in_own_process
from fewstep.evaluate.bench.run import doubling, row_of
from fewstep.evaluate.bench.table import TITLES, markdown
from fewstep.evaluate.bench.turn import REST, Turn, TurnPlan, matmul_rate, peak_bytes, rates_of, taken
from fewstep.families import FAMILIES
from fewstep.models.load import load_model
from fewstep.models.model import Model
from tests.evaluate.functions import end, fail, refuse
from tests.session.test_decoders import tiny_autoencoder

QUICK = ["--rounds", 1, "--pictures", 1, "--largest-batch", 2, "--device", "cpu", "--dtype", "fp32"]


@pytest.fixture
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns are taken in this process, which is quicker."""
    monkeypatch.setattr(run, "in_own_process", lambda function, *arguments: function(*arguments))


@pytest.fixture(scope="session")
def lora(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LCM-LoRA of the tiny model."""
    from fewstep.lora.layers import initial, target_shapes
    from fewstep.lora.low_rank import Adapter
    from fewstep.lora.recipe import Recipe
    from fewstep.lora.writing import save_adapter

    shapes = target_shapes(load_model(str(tiny_model_folder)).unet)
    recipe = Recipe(method="lcd", solver="lcm", steps=4, guidance_scale=1.0, k=20)
    path = tmp_path_factory.mktemp("lora") / "lcm.safetensors"
    save_adapter(path, Adapter(initial(shapes, 2, 0)), recipe)
    return path


# --- the whole ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_here")
def test_every_arrangement_has_its_row(
    fewstep: Any, tiny_model_folder: Path, lora: Path, tmp_path: Path, cache_folder: Path
) -> None:
    done = fewstep("bench", *QUICK, "--engine", "torch", model=tiny_model_folder, lora=lora, out=tmp_path / "out")
    assert done.code == 0, done.err
    document = json.loads((tmp_path / "out" / "bench.json").read_text())
    rows = {row["arrangement"]: row for row in document["rows"]}
    assert list(rows) == ["fewstep torch", GUIDE, TUNED]
    for row in rows.values():
        assert row["missing"] == ""
        assert all(row[key] > 0 for key in ("load_s", "first_s", "picture_s", "step_s", "pictures_per_s", "over_floor"))
        assert sum(row["parts_s"].values()) == pytest.approx(row["picture_s"])  # of one picture
        assert all(seconds > 0 for seconds in row["parts_s"].values())
        assert row["step_s"] == row["parts_s"]["network"] / 4
        operations, rate = document["flops"]["picture"], document["matmul_flops_per_s"][row["dtype"]]
        assert row["floor_s"] == pytest.approx(operations / rate)
        assert row["over_floor"] == pytest.approx(row["picture_s"] / row["floor_s"])
        assert row["best_batch"] in (1, 2)
    assert rows[GUIDE]["times_as_fast"][GUIDE] == 1
    ratio = rows[GUIDE]["picture_s"] / rows["fewstep torch"]["picture_s"]
    assert rows["fewstep torch"]["times_as_fast"][GUIDE] == pytest.approx(ratio)
    assert (document["solver"], document["steps"], document["guidance_scale"]) == ("lcm", 4, 1)
    assert (document["width"], document["height"], document["lora"]) == (16, 16, ["lcm.safetensors"])
    assert done.out == (tmp_path / "out" / "table.md").read_text()
    assert done.out.startswith("| arrangement")
    with Image.open(tmp_path / "out" / "bench.png") as chart:
        assert chart.size[0] > 500
    assert not [path for path in (cache_folder / "bench").iterdir() if path.is_dir()]


@pytest.mark.usefixtures("_here")
def test_json_and_alone_and_two_sides(fewstep: Any, tiny_sdxl_folder: Path, tmp_path: Path) -> None:
    """SDXL's kind, without LoRA: LCM's solver, two rows a step with guidance."""
    options = {
        "engine": "torch",
        "guidance_scale": 2,
        "width": 24,
        "steps": 2,
        "model": tiny_sdxl_folder,
        "out": tmp_path / "out",
    }
    done = fewstep("bench", *QUICK, "--alone", "--json", **options)
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert [row["arrangement"] for row in document["rows"]] == ["fewstep torch"]
    assert document["rows"][0]["times_as_fast"] == {GUIDE: None, TUNED: None}
    assert (document["width"], document["height"], document["lora"], document["steps"]) == (24, 16, [], 2)
    assert (
        document["flops"]["picture"]
        == document["flops"]["text"] + document["flops"]["decoder"] + 2 * (document["flops"]["step"])
    )


def test_a_turn_runs_in_a_process_of_its_own(tiny_model_folder: Path, tmp_path: Path) -> None:
    assert in_own_process(os.getpid) != os.getpid()
    plan = planned(config(model=str(tiny_model_folder), device="cpu", dtype="fp32"), tmp_path)
    found = in_own_process(taken, "fewstep torch", plan, TurnPlan(2, (1, 2)))
    assert found.missing == ""
    assert len(found.pictures) == 2
    assert found.peak_bytes is None or found.peak_bytes > 2**27  # torch alone takes more
    assert (tmp_path / "picture.png").is_file()


def test_what_is_on_the_hub_is_fetched_before_processes_begin(monkeypatch: pytest.MonkeyPatch, lora: Path) -> None:
    asked: list[str] = []
    monkeypatch.setattr(run, "resolved", asked.append)
    run.fetch(config(model="sdxl", loras=(str(lora),)))
    run.fetch(config(random="sd15"))
    run.fetch(config())
    assert asked == ["sdxl"]


# --- processes ----------------------------------------------------------------------------------------------


def test_errors_come_back_from_a_process() -> None:
    with pytest.raises(FewstepError, match="the process ended by itself, perhaps for lack of memory"):
        in_own_process(end)
    with pytest.raises(UsageError, match="no\n\nhint: yes"):
        in_own_process(refuse)
    with pytest.raises(RuntimeError, match="ZeroDivisionError: of a library"):
        in_own_process(fail)


def test_libraries_that_a_process_imports_are_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError):
        in_own_process(refuse)
    assert capfd.readouterr() == ("", "")


def test_a_process_that_ends_is_marked_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: object) -> None:
        raise FewstepError("the process ended by itself", "close other programs")

    monkeypatch.setattr(run, "in_own_process", dies)
    found = run.turn_of("fewstep torch", plan_of(), TurnPlan(1, (1,)))
    assert found.missing == "the process ended by itself; close other programs"


# --- operations ---------------------------------------------------------------------------------------------


@pytest.fixture
def model(tiny_model_folder: Path) -> Model:
    return load_model(str(tiny_model_folder))


def test_operations_are_those_of_the_network_itself(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted again on the real network, whose attention is spelled out as two matrix products."""

    def attention(query: Any, key: Any, value: Any, attn_mask: Any = None, **_: object) -> Any:
        weights = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
        return (weights if attn_mask is None else weights + attn_mask).softmax(-1) @ value

    found = count_flops(model, 16, 16, 1)
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    from fewstep.models.network import UNetNetwork

    conditioning = model.embed(["a cat"])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        UNetNetwork(model.unet)(torch.zeros(1, 4, 8, 8), torch.zeros(1), conditioning)
    assert found.step == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        model.decode(torch.zeros(1, 4, 8, 8))
    assert found.decoder == counter.get_total_flops()


def test_operations_grow_with_rows_and_size(model: Model) -> None:
    one, two, large = (count_flops(model, side, side, rows) for side, rows in ((16, 1), (16, 2), (32, 1)))
    assert two.step > 1.8 * one.step  # the embedding of the timestep and of the text too
    assert two[::2] == one[::2]
    assert large.decoder == 4 * one.decoder  # without attention
    assert Flops(1, 10, 100).total(4) == 141


def test_the_rate_is_of_this_machine() -> None:
    assert 1e8 < matmul_rate(torch.float32, torch.device("cpu"), side=256) < 1e16


def test_memory_is_known_or_not() -> None:
    found = peak_bytes(torch.device("cpu"))
    assert found is None or 2**26 < found < 2**40


# --- turns --------------------------------------------------------------------------------------------------


class Artless:
    """Draws batches that take a fixed time and one for each picture, and no more than `most` together."""

    def __init__(self, fixed_s: float, each_s: float, most: int = 1000) -> None:
        self.fixed_s, self.each_s, self.most, self.sizes = fixed_s, each_s, most, list[int]()

    def __call__(self, count: int) -> TimedBatch:
        if count > self.most:
            raise RuntimeError("out of memory")
        self.sizes.append(count)
        time.sleep(self.fixed_s + self.each_s * count)
        return TimedBatch([Image.new("RGB", (8, 8))] * count, {"text": 0.0, "network": 0.001, "decoder": 0.0})


def ready(draw: Callable[[int], TimedBatch]) -> Opened:
    return Opened(draw, "fp32", torch.device("cpu"))


def test_batches_grow_while_they_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    gaining = Artless(0.02, 0.0)
    assert list(rates_of(ready(gaining), doubling(8), 0.02)) == [1, 2, 4, 8]
    assert gaining.sizes == [1, 1, 2, 2, 4, 4, 8, 8]  # one to warm up
    level = rates_of(ready(Artless(0.0, 0.02)), doubling(8), 0.02)
    assert list(level) == [1, 2]
    assert level[1] == pytest.approx(50, rel=0.2)
    assert list(rates_of(ready(Artless(0.02, 0.0, most=2)), doubling(8), 0.02)) == [1, 2]
    monkeypatch.setattr(turn, "WARM_S", 0.01)
    slow = Artless(0.02, 0.0)
    rates_of(ready(slow), (1,), 0.02)
    assert slow.sizes == [1]
    monkeypatch.setattr(turn, "GIVE_UP_S", 0.03)
    assert list(rates_of(ready(Artless(0.02, 0.0)), doubling(8), 0.02)) == [1]


def test_doubling() -> None:
    assert [doubling(n) for n in (1, 3, 4, 32)] == [(1,), (1, 2), (1, 2, 4), (1, 2, 4, 8, 16, 32)]


# --- rows ---------------------------------------------------------------------------------------------------


def config(**values: object) -> BenchConfig:
    return build(BenchConfig, **values)


def plan_of(steps: int = 4) -> BenchPlan:
    class Steps:
        """A plan, as far as rows need one."""

        def __init__(self) -> None:
            self.steps = steps

    empty: Any = None
    return BenchPlan(
        Path(),
        Path(),
        (),
        empty,
        Steps(),
        "epsilon",
        50,
        "cpu",
        "fp32",
        "full",
        Flops(10, 20, 10),
        Flops(10, 20, 10),  # type: ignore[arg-type]
    )


def turn_with(*seconds: float, dtype: str = "fp32") -> Turn:
    pictures = tuple({"text": 0.0, "network": s, "decoder": 0.0, REST: 0.0} for s in seconds)
    return Turn(1.0, 2.0, pictures, {1: 5.0, 2: 6.0}, 2**30, dtype)


def test_ratios_are_of_one_round() -> None:
    """The machine is twice as slow in the second round: ratios do not see it."""
    rounds = [
        ({"fewstep torch": turn_with(1, 1), GUIDE: turn_with(3, 3)}, {"fp32": 100.0}),
        ({"fewstep torch": turn_with(2, 2), GUIDE: turn_with(6, 6)}, {"fp32": 50.0}),
    ]
    row = row_of("fewstep torch", rounds, plan_of())
    assert row["times_as_fast"] == {GUIDE: 3, TUNED: None}
    assert row["over_floor"] == 1  # 100 operations a picture
    assert row["picture_s"] == 1.5
    assert (row["best_batch"], row["best_pictures_per_s"]) == (2, 6)


def test_what_is_missing_is_marked() -> None:
    rounds = [({"fewstep openvino": Turn(missing="openvino is not installed; pip install openvino")}, {})]
    row = row_of("fewstep openvino", rounds, plan_of())
    assert row == {"arrangement": "fewstep openvino", "missing": "openvino is not installed; pip install openvino"}
    document = {
        "rows": [row], "flops": {"picture": 1, "text": 1, "step": 1, "decoder": 1}, "matmul_flops_per_s": {},
        "lora": [], "random": True, "model": "sd15", "width": 8, "height": 8, "steps": 4, "solver": "lcm",
        "guidance_scale": 1.0, "decoder": "auto", "rounds": 1, "machine": "m", "instructions": [], "versions": {},
    }  # fmt: skip
    text = markdown(document)
    assert "* fewstep openvino: openvino is not installed; pip install openvino" in text
    assert f"| {TITLES[0]}" not in text


@pytest.mark.usefixtures("_here")
def test_an_engine_that_cannot_open_is_a_line_below_the_table(
    fewstep: Any, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fewstep.engines.torch import TorchEngine

    whole = TorchEngine.open.__func__  # type: ignore[attr-defined]

    def missing(kind: type, where: Any) -> Any:
        if where.dtype == "bf16":
            raise FewstepError("the engine torch needs a package", "pip install it")
        return whole(kind, where)

    monkeypatch.setattr(TorchEngine, "open", classmethod(missing))
    done = fewstep("bench", *QUICK[:-1], "bf16", "--engine", "torch", model=tiny_model_folder, out=tmp_path / "out")
    assert done.code == 0, done.err
    assert "* fewstep torch: the engine torch needs a package; pip install it" in done.out
    assert f"| {GUIDE} " in done.out


@pytest.mark.usefixtures("_here")
def test_another_decoder_has_a_floor_of_its_own_and_pictures_are_compared_with_fp32(
    fewstep: Any, tiny_model_folder: Path, tmp_path: Path
) -> None:
    folder = tiny_autoencoder(tmp_path / "taesd")
    options = {"model": tiny_model_folder, "out": tmp_path / "out", "engine": "torch", "pictures": 1, "rounds": 1}
    common = ["bench", "--largest-batch", 1, "--device", "cpu", "--alone", "--accuracy"]
    rows = {}
    for name, more in (("same", {"dtype": "fp32"}), ("half", {"dtype": "bf16"}), ("tiny", {"decoder": folder})):
        done = fewstep(*common, **options, **more)
        assert done.code == 0, done.err
        assert "PSNR (dB)" in done.out
        [rows[name]] = json.loads((tmp_path / "out" / "bench.json").read_text())["rows"]
    assert rows["same"]["psnr_db"] == 100
    assert 20 < rows["half"]["psnr_db"] < 100
    assert rows["tiny"]["psnr_db"] < 20  # another random network
    flops = json.loads((tmp_path / "out" / "bench.json").read_text())["flops"]
    assert flops["decoder"] == count_flops(load_model(str(tiny_model_folder)), 16, 16, 1).decoder
    rates = json.loads((tmp_path / "out" / "bench.json").read_text())["matmul_flops_per_s"]
    assert rows["tiny"]["floor_s"] != pytest.approx(flops["picture"] / rates["fp32"])


# --- what is typed ------------------------------------------------------------------------------------------


def test_engines_may_stand_between_commas() -> None:
    assert config(engine="torch,openvino").engine == ("torch", "openvino")
    assert config(engine=["torch, onnx", "auto", "torch"]).engine == ("torch", "onnx", "auto")
    with pytest.raises(UsageError, match=r"^engine"):
        config(engine="")


@pytest.mark.usefixtures("_here")
def test_bad_input(fewstep: Any, tiny_model_folder: Path, tiny_pixels_folder: Path, tmp_path: Path) -> None:
    def refused(*options: object, code: int = 2) -> tuple[str, str]:
        done = fewstep("bench", *options, out=tmp_path / "out")
        assert (done.code, done.out) == (code, "")
        assert not (tmp_path / "out").exists()
        return done.error, done.hint

    assert refused("--random", "sd15", "--model", tiny_model_folder)[0] == "--random and --model exclude each other"
    error, hint = refused("--engine", "torch,steam")
    assert error == "unknown engine 'steam'"
    assert set(engine_names()) <= set(hint.removeprefix("known ones: ").split(", "))
    for name in ("auto", "torch"):
        error, hint = refused("--engine", f"openvino,{name}", "--dtype", "int8")
        assert error == "the torch engine does not compute in --dtype int8"
        assert hint == 'use --engine openvino, and pip install "fewstep[int8]"'
    assert "sd3" in refused("--random", "sd3")[0]
    assert refused("--model", tiny_model_folder, "--lora", tmp_path / "none.st", code=1)[0].startswith("LoRA file not")
    assert "is a model in pixel space" in refused("--model", tiny_pixels_folder)[0]
    assert "not found" in refused("--model", tmp_path / "none", code=1)[0]
    (tmp_path / "file").write_text("")
    done = fewstep("bench", out=tmp_path / "file")
    assert done.error == f"--out {tmp_path / 'file'} is a file"


def test_a_random_model_of_a_family_is_made_and_removed(
    fewstep: Any, tmp_path: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """emoji's family in the place of a large one."""
    monkeypatch.setattr(run, "in_own_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(plan_file, "FAMILIES", {"sd15": FAMILIES["emoji"]})
    done = fewstep("bench", *QUICK, "--random", "sd15", "--alone", "--json", out=tmp_path / "out")
    assert done.code == 0, done.err
    assert "shards" not in done.err  # transformers has a bar for them
    document = json.loads(done.out)
    assert (document["model"], document["random"], document["lora"]) == ("sd15", True, ["lora.safetensors"])
    assert (document["width"], document["solver"], document["steps"]) == (128, "lcm", 4)
    emoji = count_flops(load_model("emoji"), 128, 128, 1)
    assert document["flops"] == {**emoji._asdict(), "picture": emoji.total(4)}
    assert "sd15, random weights; LoRA: lora.safetensors" in (tmp_path / "out" / "table.md").read_text()
    assert not [path for path in (cache_folder / "bench").iterdir() if path.is_dir()]
