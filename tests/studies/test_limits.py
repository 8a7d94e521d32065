"""docs/limits.md: its sums are right, and what it says follows from its figures."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fewstep.assets import shipped_lora
from fewstep.cli import main_of
from fewstep.configs import build
from fewstep.diffusion.guidance import Conditioning
from fewstep.lora.files import open_lora
from fewstep.metrics.estimate import estimate
from studies import limits

DOCS = Path(__file__).parents[2] / "docs"

FACTS = {
    "fewstep": "0", "model_sha256": "a" * 64, "lcm_sha256": "b" * 64, "images": 64, "guidance_scale": 4.0,
    "dtype": "fp32", "device": "cpu",
}  # fmt: skip


def n(value: float, error: float = 0.01) -> dict[str, float]:
    return {"value": value, "error": error}


def teaching(noise: float, change: float = 0.0) -> dict[str, Any]:
    return {"noise": noise, "teacher": n(0.5), "student": n(0.4), "teacher_change": n(change), "gap": n(-0.1),
            "student_change": n(change), "sharpness": n(0.9)}  # fmt: skip


def path(kind: str, drawn_with: str, change: float) -> dict[str, Any]:
    return {"between": kind, "drawn_with": drawn_with, "ends": n(0.2), "length": n(1.5), "jump": n(2.0),
            "length_change": n(change), "jump_change": n(-change)}  # fmt: skip


def cut(rank: int, agreement: float = 0.0, sharpness: float = 0.0) -> dict[str, Any]:
    row = {"rank": rank, "bytes": 1000 * rank, "energy": 1 - 0.5 / rank, "agreement": n(0.5)}
    if rank == 16:
        return row
    return row | {"lpips": n(0.1), "sharpness": n(1 + sharpness), "agreement_change": n(agreement),
                  "sharpness_change": n(sharpness)}  # fmt: skip


def far(drawn_with: str, worst: float = 0.4, change: float = 0.0) -> dict[str, Any]:
    values = dict(zip(limits.inputs.KEYS, (0.1, worst, 0.01, 0.02), strict=True))
    return {"drawn_with": drawn_with, **{k: n(v) for k, v in values.items()}} | {
        f"{k}_change": n(change) for k in values
    }


def step(solver: str, steps: int, *changes: float) -> dict[str, Any]:
    named = {f"{key}_change": n(value) for key, value in zip(("agreement", "sharpness"), changes, strict=False)}
    return {"solver": solver, "steps": steps, "drawn_with": f"{solver}:{steps}", "nfe": float(steps),
            "agreement": n(0.5), "sharpness": n(0.8), "lpips": n(0.2), **named}  # fmt: skip


def line(name: str, change: float | None = None) -> dict[str, Any]:
    row = {"name": name, "sharpness": n(0.9), "sharpness_change": n(-0.1), "lpips": n(0.3)}
    return row if change is None else row | {
        "teacher": n(0.5), "student": n(0.5 + change), "teacher_change": n(0, 0), "student_change": n(change)
    }  # fmt: skip


def sketch(strength: float, drawn_with: str, agreement: float = 0.0) -> dict[str, Any]:
    return {"strength": strength, "drawn_with": drawn_with, "lpips": n(0.2), "agreement": n(0.4),
            "lpips_change": n(0.1), "agreement_change": n(agreement)}  # fmt: skip


def document() -> dict[str, Any]:
    """Every section, once."""
    both = {"teacher": "dpm-solver++:25", "student": "lcm:4"}
    sections = {
        "1": both | {"rows": [teaching(0.0), teaching(0.1, -0.3)]},
        "2": {"teacher": "dpm-solver++:20", "student": "lcm:4", "paths": 12, "points": 16, "rows": [
            path(kind, way, change) for kind in ("noises", "prompts") for way, change in
            (("dpm-solver++:20", 0), ("lcm:1", -0.5), ("lcm:4", 0.5))
        ]},
        "3": {"student": "lcm:4", "rows": [cut(16), cut(8), cut(4), cut(2, -0.1), cut(1)]},
        "4": both | {"truth": "ddim:100", "changed": 0.1, "shaken": 64,
                     "rows": [far("dpm-solver++:25"), far("lcm:4", 0.8, 0.4)]},
        "5": {"truth": "ddim:100", "rows": [
            step("lcm", 1), step("lcm", 2, 0.1, 0.1), step("lcm", 4, 0, 0.1), step("lcm", 8, 0, -0.1),
            step("dpm-solver++", 8), step("dpm-solver++", 25, 0.3, 0.3),
        ]},
        "6": both | {"sketches": 32, "sketch_styles": 8, "sketch_agreement": n(0.6),
                     "rows": [line("names", -0.1), line("flat", 0.0), line("own words")],
                     "sketch_rows": [sketch(0.5, "dpm-solver++:25", -0.5), sketch(0.5, "lcm:4", 0.2)]},
    }  # fmt: skip
    return {"sections": {number: FACTS | section for number, section in sections.items()}}


# --- the page -----------------------------------------------------------------------------------------------


def test_changes_are_those_from_the_teacher() -> None:
    one, other = (estimate(lambda some, x=x: x + 0.1 * float(some[0]), 4) for x in (3.0, 1.0))
    numbers = limits.bench.with_changes(("a", "b"), (one, other), (other, other))
    assert numbers["a_change"]["value"] == pytest.approx(2)
    assert (numbers["a"], numbers["b"]["value"], numbers["b_change"]["value"]) == (one.numbers, other.value, 0)


def test_the_page_is_what_its_figures_make() -> None:
    kept = json.loads((DOCS / "limits.json").read_text(encoding="utf-8"))
    assert limits.page.page(kept) == (DOCS / "limits.md").read_text(encoding="utf-8")
    for picture in (DOCS / "pictures").glob("limits-*.jpg"):
        assert picture.stat().st_size <= limits.run.LARGEST


def test_a_whole_page_has_every_limit_and_is_short() -> None:
    text = limits.page.page(json.loads(json.dumps(document())))
    assert "Not measured" not in text
    assert "not all of the same model" not in text
    for number, limit in limits.page.LIMITS.items():
        assert text.count(f"\n## {number}. {limit.title}\n") == 1
        assert text.count(f"| {number}. {limit.title} ") == 1
    for name in ("paths", "worst", "steps", "sketches"):
        assert text.count(f"(pictures/limits-{name}.jpg)") == 1
    assert len(limits.page.learnt(document()["sections"])) == 5
    opening = text.split("-->")[1].split("\n| ")[0]
    assert max(map(len, opening.splitlines())) <= 120
    assert len(text.splitlines()) <= 150
    assert "{" not in text


def test_what_was_not_measured_is_said_and_so_is_another_model() -> None:
    figures = document()
    del figures["sections"]["2"], figures["sections"]["5"]
    figures["sections"]["3"]["lcm_sha256"] = "c" * 64
    text = limits.page.page(figures)
    assert "The sections are not all of the same model." in text
    assert "Not measured yet: `python -m studies.limits --sections 5` does." in text
    assert "Not measured yet" in limits.page.page({"sections": {}})


def test_a_partial_run_replaces_only_its_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, sections = tmp_path / "limits.md", document()["sections"]
    (tmp_path / "limits.json").write_text(json.dumps({"sections": {"1": sections["1"], "5": sections["5"]}}))
    measured = limits.bench.Measured(
        {key: sections["5"][key] for key in ("truth", "rows")}, {"steps": Image.new("RGB", (64, 64), "red")}
    )
    limit = limits.page.LIMITS["5"]._replace(measure=lambda bench: measured)
    monkeypatch.setitem(limits.page.LIMITS, "5", limit)
    monkeypatch.setattr(limits.run, "Lab", lambda *_: None)
    monkeypatch.setattr(limits.run, "facts", lambda bench: FACTS | {"images": bench.images})
    code = main_of(limits.run.LimitsConfig, limits.run.run, ["--sections", "5", "--images", "8", "--out", str(out)])
    assert code == 0
    kept = json.loads((tmp_path / "limits.json").read_text())["sections"]
    assert kept == {"1": sections["1"], "5": sections["5"] | {"images": 8}}
    assert out.read_text(encoding="utf-8") == limits.page.page({"sections": kept})
    assert (tmp_path / "pictures" / "limits-steps.jpg").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sections", "1,7"], "there is no section '7'"),
        (["--images", "4"], "--images 4: input should be greater than or equal to 8"),
    ],
)
def test_what_is_refused(options, words, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_of(limits.run.LimitsConfig, limits.run.run, options) == 2
    assert words in capsys.readouterr().err


def test_the_teacher_draws_at_the_guidance_that_was_distilled() -> None:
    lora = shipped_lora("lcm")
    assert lora is not None
    low, high = open_lora(lora).recipe.teacher_guidance_scale
    assert limits.bench.options_of(limits.bench.TEACHER)["guidance_scale"] == (low + high) / 2
    cut_lora = limits.bench.STUDENT._replace(lora=("runs/cut.safetensors",))
    assert "guidance_scale" not in limits.bench.options_of(cut_lora)


# --- sums ---------------------------------------------------------------------------------------------------


def test_an_arc_keeps_its_ends_and_its_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 4, 16, 16, generator=generator, dtype=torch.float64)
    b *= a.norm() / b.norm()
    arc = limits.smooth.slerp(a, b, torch.linspace(0, 1, 9))
    torch.testing.assert_close(arc[0], a)
    torch.testing.assert_close(arc[-1], b)
    torch.testing.assert_close(arc.flatten(1).norm(dim=1), a.norm().expand(9))
    steps = (arc[1:] - arc[:-1]).flatten(1).norm(dim=1)
    torch.testing.assert_close(steps, steps[:1].expand(8))  # as far each time
    torch.testing.assert_close(limits.smooth.slerp(a, a, torch.linspace(0, 1, 3)), a.expand(3, *a.shape))


def test_a_straight_line_has_length_one_and_a_detour_more() -> None:
    steps, ends = torch.full((12, 15), 1 / 15), torch.ones(12)
    ratio = limits.smooth.ratio_of_sums
    straight = ratio(steps.sum(dim=1), ends)
    assert (straight.value, straight.error) == (pytest.approx(1), pytest.approx(0, abs=1e-6))
    assert ratio(steps.amax(dim=1), steps.mean(dim=1)).value == pytest.approx(1)
    detour = torch.cat([steps, torch.full((12, 1), 0.5)], dim=1)
    assert ratio(detour.sum(dim=1), ends).value == pytest.approx(1.5)
    assert ratio(detour.amax(dim=1), detour.mean(dim=1)).value == pytest.approx(0.5 / (1.5 / 16))


def test_roughness_of_pictures() -> None:
    """By a stand-in for LPIPS, the squared distance: a straight line of pixels has length 1."""

    class Bench:
        def between(self, x, y):
            return (x - y).square().sum(dim=(1, 2, 3))

    class Pictures:
        def batches(self):
            return iter([torch.linspace(0, 1, 5).view(5, 1, 1, 1).expand(5, 3, 2, 2)] * 2)

    found = limits.smooth.roughness(Bench(), Pictures())
    assert (found.ends.value, found.length.value, found.jump.value) == (
        pytest.approx(12), pytest.approx(1), pytest.approx(1))  # fmt: skip


def test_conditionings_between_two() -> None:
    a, b = (Conditioning(torch.full((1, 2, 3), value), torch.full((1, 4), value)) for value in (0.0, 2.0))
    middle = limits.smooth.between(a, b, torch.tensor([0.0, 0.5, 1.0]))
    assert middle.text[:, 0, 0].tolist() == middle.pooled[:, 0].tolist() == [0, 1, 2]
    assert middle.control is None


@pytest.mark.parametrize(("count", "mean"), [(8, 7), (20, 18.5), (25, 23)])
def test_the_worst_decile(count: int, mean: float) -> None:
    values = torch.arange(count, dtype=torch.float64)[torch.randperm(count, generator=torch.Generator().manual_seed(1))]
    assert limits.bench.worst_decile(values) == mean


def test_noise_as_large_as_the_weights() -> None:
    W = torch.randn(32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noised = limits.pretrained.noised
    torch.testing.assert_close(noised(W, 0.0, torch.Generator().manual_seed(0)), W)
    n = noised(W, 1.0, torch.Generator().manual_seed(0))
    torch.testing.assert_close(n.norm(), W.norm())
    torch.testing.assert_close(noised(W, 0.2, torch.Generator().manual_seed(0)), 0.8 * W + 0.2 * n)
    assert not noised(torch.zeros(3), 0.5, torch.Generator()).any()


def test_small_sums() -> None:
    assert limits.rank.ranks_below(16) == [1, 2, 4, 8]
    assert limits.rank.ranks_below(12) == [1, 2, 4, 8]
    assert limits.rank.ranks_below(1) == []
    assert limits.inputs.times_the_median(document()["sections"]["4"], "lcm:4") == pytest.approx(8)


def test_the_plot_is_wide() -> None:
    plot = limits.speed.steps_plot(document()["sections"]["5"]["rows"])
    assert plot.width > plot.height > 100


# --- what is decided ----------------------------------------------------------------------------------------


def test_changes_for_certain_are_bold() -> None:
    assert limits.words.change_text(n(0.3), 100) == "**+30.0 ± 1.0**"
    assert limits.words.change_text(n(-0.02), 100) == "-2.0 ± 1.0"
    assert [limits.words.sign(n(value)) for value in (0.3, -0.3, 0.02)] == [1, -1, 0]


@pytest.mark.parametrize(
    ("rows", "rank"),
    [
        ([cut(16), cut(8), cut(4, -0.1), cut(2)], 8),  # what loses is not passed over
        ([cut(16), cut(8, 0.1), cut(4, 0, -0.2)], 8),
        ([cut(16), cut(8, -0.1)], 16),
        ([cut(16)], 16),
    ],
)
def test_how_far_a_lora_can_be_cut(rows, rank) -> None:
    section = {"rows": rows}
    assert limits.rank.smallest(section)["rank"] == rank
    assert f"can be cut to rank {rank} ({rank} kB)" in limits.page.of_rank(section)


@pytest.mark.parametrize(
    ("changes", "last"),
    [(((0.1, 0), (0, 0), (0, 0)), 2), (((0, 0), (0, 0.1), (0, -0.1)), 4), (((0, 0), (0, 0), (0, 0)), 1)],
)
def test_where_more_steps_add_nothing(changes, last) -> None:
    rows = [step("lcm", 1), *(step("lcm", 2**i, *both) for i, both in enumerate(changes, 1))]
    assert limits.speed.last_gain({"rows": [*rows, step("ddim", 32, 1, 1)]}) == last


def test_what_it_is_worse_at() -> None:
    section = document()["sections"]["6"]
    assert limits.general.worse(section) == ["names"]
    section["sketch_rows"].append(sketch(0.8, "lcm:4", -0.2))
    assert "than its teacher on names and sketches at strength 0.8." in limits.page.of_generality(section)
    section = section | {"rows": [], "sketch_rows": []}
    assert "On no kind of prompt here" in limits.page.of_generality(section)


@pytest.mark.parametrize(("change", "words"), [(-0.5, "in larger jumps"), (0.5, "in smaller"), (0.01, "as evenly")])
def test_how_even_paths_are(change, words) -> None:
    section = {"student": "lcm:4", "rows": [path("noises", "lcm:4", change)]}
    assert words in limits.page.of_paths(section)


@pytest.mark.parametrize(("names", "words"), [((), "none"), (("a",), "a"), (("a", "b", "c"), "a, b and c")])
def test_lists(names, words) -> None:
    assert limits.words.listed(names) == words


# --- all of it ----------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_whole_measurement_in_few_steps_makes_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    way = limits.bench.Way
    few: dict[str, Any] = {
        "TEACHER": way("dpm-solver++", 2), "TRUTH": way("ddim", 2), "STUDENT_STEPS": (4,), "LCM_STEPS": (1, 4),
        "TEACHER_STEPS": (2,), "WAYS": (way("dpm-solver++", 2), limits.bench.STUDENT), "NOISY": (0.0, 0.1),
        "POINTS": 3,
    }  # fmt: skip
    for module in (limits.bench, limits.general, limits.inputs, limits.pretrained, limits.smooth, limits.speed):
        for name, value in few.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    out = tmp_path / "limits.md"
    wanted = build(limits.run.LimitsConfig, images=8, paths=2, precision="fp32", device="cpu", out=out)
    limits.run.run(wanted)
    kept = json.loads((tmp_path / "limits.json").read_text(encoding="utf-8"))
    assert list(kept["sections"]) == list(limits.page.LIMITS)
    text = out.read_text(encoding="utf-8")
    assert text == limits.page.page(kept)
    for name in ("paths", "worst", "steps", "sketches"):
        assert (tmp_path / "pictures" / f"limits-{name}.jpg").stat().st_size <= limits.run.LARGEST
    assert "nan" not in text
