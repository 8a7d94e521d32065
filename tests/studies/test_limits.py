"""docs/limits.md: its sums are right, and what it says follows from its figures."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fewstep.cli import main_of
from fewstep.diffusion.guidance import Conditioning
from fewstep.metrics.estimate import estimate
from studies import limits

DOCS = Path(__file__).parents[2] / "docs"

FACTS = {
    "fewstep": "0", "model_sha256": "a" * 64, "lcm_sha256": "b" * 64, "images": 64, "guidance_scale": 4.0,
    "dtype": "fp32", "device": "cpu",
}  # fmt: skip


def n(value: float, error: float = 0.01) -> dict[str, float]:
    return {"value": value, "error": error}


def quality(agreement: float, distance: float) -> dict[str, Any]:
    return {"agreement": n(agreement), "distance": n(distance, 1.0)}


def teaching(name: str, gap: tuple, teacher_change: tuple = (0, 0), student_change: tuple = (0, 0)) -> dict[str, Any]:
    return {
        "name": name,
        "teacher": quality(0.5, 200),
        "student": quality(0.4, 210),
        "gap": quality(*gap),
        "teacher_change": quality(*teacher_change),
        "student_change": quality(*student_change),
    }


def cut(rank: int, agreement: float, distance: float, full_energy: float | None = None) -> dict[str, Any]:
    return {
        "rank": rank,
        "bytes": 1000 * rank,
        "energy": 1 - 0.5 / rank,
        "full_energy": full_energy,
        "lpips": n(0.1),
        **quality(0.5, 200),
        "change": quality(agreement, distance),
    }


def far(drawn_with: str, worst: float = 0.4, change: float = 0.0) -> dict[str, Any]:
    keys = ("far", "far_worst", "apart", "apart_worst")
    values = dict(zip(keys, (0.1, worst, 0.01, 0.02), strict=True))
    return {"drawn_with": drawn_with, **{k: n(v) for k, v in values.items()}} | {f"{k}_change": n(change) for k in keys}


def step(solver: str, steps: int, distance: float, behind: float) -> dict[str, Any]:
    lines = {"agreement": n(0.5), "distance": n(distance, 1.0), "lpips": n(0.2)}
    behinds = {"agreement_behind": n(0), "distance_behind": n(behind, 1.0), "lpips_behind": n(0)}
    return {"solver": solver, "steps": steps, "drawn_with": f"{solver}:{steps}", "nfe": float(steps),
            "time_s": 0.01 * steps, **lines, **behinds}  # fmt: skip


def line(name: str, group: str, relative: float, agreement: float | None = None) -> dict[str, Any]:
    row = {"group": group, "name": name, "teacher_distance": n(200), "student_distance": n(210),
           "distance_relative": n(relative), "lpips": n(0.3)}  # fmt: skip
    if agreement is None:
        return row
    return row | {
        "teacher_agreement": n(0.5), "student_agreement": n(0.5 + agreement), "agreement_change": n(agreement)
    }  # fmt: skip


def sketch(strength: float, drawn_with: str, lpips: float = 0.0, agreement: float = 0.0) -> dict[str, Any]:
    return {"strength": strength, "drawn_with": drawn_with, "lpips": n(0.2), **quality(0.4, 200),
            "lpips_change": n(lpips), "agreement_change": n(agreement), "distance_change": n(0, 1.0)}  # fmt: skip


def path(between: str, drawn_with: str, change: float = 0.0) -> dict[str, Any]:
    return {"between": between, "drawn_with": drawn_with, "ends": n(0.2), "length": n(1.5), "jump": n(2.0),
            "length_change": n(change), "jump_change": n(-change)}  # fmt: skip


def document() -> dict[str, Any]:
    """Every section, once."""
    sections = {
        "1": {"teacher": "dpm-solver++:25", "student": "lcm:4", "rows": [
            teaching("as shipped", (-0.1, 10)), teaching("older", (0.005, 1), (-0.1, 30), (-0.1, 20)),
        ]},
        "2": {"teacher": "dpm-solver++:20", "paths": 12, "points": 16, "rows": [
            path(kind, way, change) for kind in ("noises", "prompts") for way, change in
            (("dpm-solver++:20", 0), ("lcm:1", -0.5), ("lcm:4", 0.5))
        ]},
        "3": {"student": "lcm:4", "rows": [cut(1, -0.1, 20, 0.4), cut(2, 0, 1, 0.5), cut(4, 0, 0, 0.95)]},
        "4": {"truth": "ddim:100", "teacher": "dpm-solver++:25", "student": "lcm:4", "changed": 0.01,
              "rows": [far("dpm-solver++:25"), far("lcm:4", 0.8, 0.4)], "worst": [{"prompt": "a fox", "lpips": 0.91}],
              "styles": {"noto": {"all": 10, "worst": 2}, "flat": {"all": 10, "worst": 0}}},
        "5": {"truth": "ddim:100", "rows": [
            step("lcm", 1, 250, 50), step("lcm", 4, 201, 1), step("lcm", 8, 200, 0), step("lcm", 16, 230, 30),
            step("dpm-solver++", 4, 260, 60), step("dpm-solver++", 25, 200, 0),
        ]},
        "6": {"teacher": "dpm-solver++:25", "student": "lcm:4", "sketches": 32, "sketch_styles": 8,
              "sketch_agreement": n(0.6), "rows": [
                  line("noto", "style", 0.2, -0.2), line("flat", "style", -0.2, 0.0), line("own", "words", 0.0)],
              "sketch_rows": [sketch(0.5, "dpm-solver++:25"), sketch(0.5, "lcm:4", 0.2, -0.2)]},
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


def test_a_whole_page_tells_every_section() -> None:
    text = limits.page.page(json.loads(json.dumps(document())))
    assert "Not measured" not in text
    assert "All sections are of one and the same model." in text
    for number in limits.page.SECTIONS:
        assert text.count(f"\n## {number}. ") == 1
    for name in ("paths", "worst", "steps", "sketches"):
        assert text.count(f"(pictures/limits-{name}.jpg)") == 1


def test_what_was_not_measured_is_said_and_so_is_another_model() -> None:
    figures = document()
    del figures["sections"]["2"], figures["sections"]["5"]
    figures["sections"]["3"]["lcm_sha256"] = "c" * 64
    text = limits.page.page(figures)
    assert "Not measured yet: section 2 and 5. The sections are not all of the same model" in text
    assert "Not measured yet: `python -m studies.limits --sections 5` does." in text


def test_a_partial_run_replaces_only_its_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, sections = tmp_path / "limits.md", document()["sections"]
    (tmp_path / "limits.json").write_text(json.dumps({"sections": {"1": sections["1"], "5": sections["5"]}}))
    monkeypatch.setitem(limits.page.SECTIONS, "5", lambda bench: limits.bench.Measured(
        {key: sections["5"][key] for key in ("truth", "rows")}, {"steps": Image.new("RGB", (64, 64), "red")}
    ))  # fmt: skip
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
        (["--earlier", "model"], "--earlier model does not name a model and its LoRA"),
        (["--images", "4"], "--images 4: input should be greater than or equal to 8"),
    ],
)
def test_what_is_refused(options, words, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_of(limits.run.LimitsConfig, limits.run.run, options) == 2
    assert words in capsys.readouterr().err


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
    assert limits.rank.ranks_to(16) == [1, 2, 4, 8, 16]
    assert limits.rank.ranks_to(12) == [1, 2, 4, 8, 12]
    assert limits.rank.ranks_to(1) == [1]
    ordered = ["noto"] * 3 + ["flat"] * 17  # the worst first
    assert limits.inputs.styles_among(ordered) == {"flat": {"all": 17, "worst": 0}, "noto": {"all": 3, "worst": 2}}
    assert limits.pretrained.name_of("runs/old/model") == "old"
    assert limits.pretrained.name_of("old.safetensors") == "old"
    a, b = (estimate(lambda images, k=k: float(k + images.double().mean()), 8) for k in (1, 3))
    assert limits.speed.best_of("agreement", [a, b]) is b
    assert limits.speed.best_of("lpips", [a, b]) is a
    for key, worse, best in (("agreement", a, b), ("distance", b, a)):
        assert limits.speed.behind(key, worse, best).value == pytest.approx(2)


def test_the_plot_is_wide() -> None:
    plot = limits.speed.steps_plot(document()["sections"]["5"]["rows"])
    assert plot.width > plot.height > 100


# --- sentences ----------------------------------------------------------------------------------------------


def test_whether_a_student_is_better_than_its_teacher() -> None:
    of_gaps = limits.pretrained.of_gaps
    assert of_gaps([teaching("one", (-0.1, 10)), teaching("two", (0.02, -2))]).endswith(
        "Nothing here speaks against the limit."
    )
    text = of_gaps([teaching("one", (0.1, 10)), teaching("two", (0, -10))])
    assert "by agreement: one; by distance: two. Here the limit is no law." in text


def test_whether_students_follow_their_teachers() -> None:
    rows = [
        teaching("first", (0, 0)),
        teaching("same", (0, 0), (0.3, -30), (0.2, -20)),
        teaching("against", (0, 0), (-0.1, -40), (0.1, 30)),
        teaching("still", (0, 0), (0.01, 1), (0.2, 9)),
    ]
    agreement, distance = limits.pretrained.of_followers(rows)
    for line in (agreement, distance):
        assert "2 of 3 other teachers differ from the shipped one for certain" in line
        assert "of their students 1 differ the same way for certain, 1 the other way" in line
    assert "The furthest, same: teacher +30.0 ± 1.0 points, student +20.0 ± 1.0 points." in agreement
    assert "The furthest, against: teacher -40.0 ± 1.0, student +30.0 ± 1.0." in distance
    assert "no other teacher here is told from" in limits.pretrained.of_followers(rows[:1])[0]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([cut(1, -0.1, 0), cut(2, 0, 0)], "The smallest rank that loses nothing for certain by either is 2"),
        ([cut(1, 0.1, -9)], "The smallest rank that loses nothing for certain by either is 1"),
        ([cut(1, 0, 9)], "Every cut loses something for certain"),
        ([], "there is nothing to cut"),
    ],
)
def test_what_cutting_loses(rows, words) -> None:
    assert words in limits.rank.of_cuts(rows)[-1]


def test_what_a_lora_can_hold() -> None:
    assert "rank 2 can hold 95.0 %" in limits.rank.of_full([cut(1, 0, 0, 0.5), cut(2, 0, 0, 0.95)])
    assert "Rank 2 is the first here" in limits.rank.of_full([cut(1, 0, 0, 0.5), cut(2, 0, 0, 0.95)])
    assert "No rank here holds 90 %" in limits.rank.of_full([cut(1, 0, 0, 0.5)])
    section = document()["sections"]["3"]
    section["rows"] = [row | {"full_energy": None} for row in section["rows"]]
    assert "whole distillation" not in limits.rank.lossy_text(section)


@pytest.mark.parametrize(("change", "words"), [(0.5, "further than"), (-0.5, "nearer than"), (0.02, "not told from")])
def test_how_far_the_worst_tenth_is(change, words) -> None:
    section = {**document()["sections"]["4"], "rows": [far("dpm-solver++:25"), far("lcm:4", 0.8, change)]}
    first, second = limits.inputs.of_tails(section)
    assert "8.0 times the median of `lcm:4` and 4.0 times the median of `dpm-solver++:25`" in first
    assert words in second


def test_where_the_worst_are() -> None:
    styles = {"noto": {"all": 10, "worst": 1}, "flat": {"all": 10, "worst": 2}, "blob": {"all": 10, "worst": 0}}
    assert limits.inputs.of_worst_styles(styles, "lcm:4").endswith(
        "3 of 30 pictures, by style: flat (2 of 10) and noto (1 of 10)."
    )


@pytest.mark.parametrize(
    ("behind", "words"),
    [
        ((50, 1, 0, 30), "more steps than 2 are not told to help (the best value is that of 3); for certain worse than"
                         " the best at 4 steps"),
        ((50, 9, 0, 1), "more steps help up to 3, the best here; up to 4 none hurts for certain"),
        ((50, 9, 5, 0), "more steps help up to 4, the best here; none was tried beyond"),
        ((0, 9, 5, 9), "the fewest steps tried, 1, are the best; for certain worse than the best at 2, 3 and 4"
                       " steps"),
    ],
)  # fmt: skip
def test_where_steps_stop_helping(behind, words) -> None:
    rows = [step("lcm", n, 200 + value, value) for n, value in enumerate(behind, 1)]
    assert limits.speed.of_steps("lcm", rows, "distance", "distance") == f"lcm, distance: {words}."


def test_generality() -> None:
    rows = [line("noto", "style", 0.2, -0.2), line("flat", "style", -0.2, 0.2), line("blob", "style", 0.01)]
    distance, agreement = limits.general.of_group(rows, "styles")
    assert "worse than the teacher: noto; better: flat; not told apart: blob. From -20.0 ± 1.0 % (flat)" in distance
    assert agreement == "Over styles, by agreement: worse than the teacher: noto; better: flat."
    assert limits.general.of_group([], "styles") == []
    section = {"student": "lcm:4", "sketch_rows": [sketch(0.5, "dpm:4"), sketch(0.5, "lcm:4", 0.2, -0.2),
                                                   sketch(0.8, "lcm:4", -0.2, 0.01)]}  # fmt: skip
    first, second = limits.general.of_strengths(section)
    assert "less of the sketch stays than" in first
    assert "draws less of what was asked" in first
    assert "more of the sketch stays" in second
    assert "neither more nor less" in second


@pytest.mark.parametrize(("names", "words"), [((), "none"), (("a",), "a"), (("a", "b", "c"), "a, b and c")])
def test_lists(names, words) -> None:
    assert limits.words.listed(names) == words
