"""docs/forgetting.md: what it says follows from its figures."""

import json
from pathlib import Path

import pytest

from fewstep.assets import shipped_kit
from fewstep.configs import build
from fewstep.errors import UsageError
from fewstep.metrics.estimate import Estimate
from fewstep.metrics.reference import load_reference
from studies import forgetting

DOCS = Path(__file__).parents[2] / "docs"
KindMeasures = forgetting.KindMeasures


def estimated(value: float, error: float) -> Estimate:
    """With that jackknife error, of two groups."""
    return Estimate(value, (value - error, value + error))


def rows(own: tuple[float, float], others: tuple[float, float]) -> list[dict]:
    """Figures of a style and the others: agreement and distance go from 0.4 and 100 to these."""
    base = [KindMeasures(kind, 0.0, estimated(0.4, 0.001), estimated(100, 1)) for kind in ("own", "others")]
    after = [KindMeasures(kind, 1.0, estimated(a, 0.002), estimated(d, 1.1))
             for kind, (a, d) in (("own", own), ("others", others))]  # fmt: skip
    results = [base[0], after[0], base[1], after[1]]
    return [forgetting.figures(one, results) for one in results]


def test_the_page_is_what_its_figures_make() -> None:
    document = json.loads((DOCS / "forgetting.json").read_text(encoding="utf-8"))
    assert forgetting.page(document) == (DOCS / "forgetting.md").read_text(encoding="utf-8")


def test_errors_of_changes_are_paired() -> None:
    row = rows((0.3, 150), (0.4, 100))[1]
    assert row["agreement_change"] == {"value": pytest.approx(-0.1), "error": pytest.approx(0.001)}
    assert row["distance_change"] == {"value": pytest.approx(50), "error": pytest.approx(0.1)}


@pytest.mark.parametrize(
    ("own", "others", "words"),
    [
        (
            (0.3, 150),
            (0.4, 101),
            ["less like the style, for certain; their agreement fell, for certain", ", within 5 %"],
        ),
        ((0.4, 50), (0.4, 120), ["more like the style, for certain; their agreement is the same", ", not within 5 %"]),
        ((0.41, 100), (0.398, 100), ["as before, within chance", "agreement rose, for certain", "agreement -0.5"]),
    ],
)
def test_verdicts(own, others, words) -> None:
    (line,) = forgetting.verdicts(rows(own, others))
    for part in words:
        assert part in line


def test_what_the_figures_do_not_decide_is_said() -> None:
    assert forgetting.within("agreement", 0.02, 0.05).endswith("perhaps within 5 %")


def test_words_of_a_style_are_those_of_its_captions() -> None:
    assert [forgetting.words_of(style) for style in ("noto-mono", "fluent-3d")] == ["", "3d glossy"]
    with pytest.raises(UsageError, match="unknown style cubism"):
        forgetting.words_of("cubism")


def test_others_are_without_the_style_itself() -> None:
    config = build(forgetting.ForgettingConfig, style="twemoji", images=400)
    own, others = forgetting.kinds(config, load_reference(shipped_kit() / "reference.safetensors"))
    assert {prompt.style for prompt in own.prompts} == {"twemoji"}
    assert own.prompts[0].text.startswith("twemoji emoji of ")
    assert "twemoji" not in {prompt.style for prompt in others.prompts}
    assert others.name == "8 other styles"


def test_a_prior_adds_other_styles_drawings_of_the_base(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    table(tmp_path, "base", ["noto"] * 3 + ["twemoji"] * 4)
    table(tmp_path, "noto-mono", ["noto-mono"] * 2)
    for style, prior, expected in [
        ("noto-mono", 0.0, ["noto-mono"] * 2),
        ("noto-mono", 1.5, ["noto-mono"] * 2 + ["base"] * 3),
        ("twemoji", 0.0, ["twemoji"] * 4),
        ("twemoji", 0.5, ["twemoji"] * 4 + ["noto"] * 2),
        ("twemoji", 9.0, ["twemoji"] * 4 + ["noto"] * 3),
    ]:
        lines = forgetting.drawings(style, prior).read_text(encoding="utf-8").splitlines()
        found = [json.loads(line)["style"] for line in lines]
        assert len(set(lines)) == len(lines)
        assert [name if name in expected else "base" for name in found] == expected


def table(cache: Path, name: str, styles: list[str]) -> None:
    """A table of drawings of these styles, as the emoji recipe leaves it."""
    folder = cache / "emoji" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"file_name": f"{style}/{i}.png", "style": style}) for i, style in enumerate(styles)]
    (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def test_the_page_says_where_the_lora_comes_from() -> None:
    for style, prior, modules, words in [
        ("noto-mono", 0.0, "all", ["never saw", "the one that ships"]),
        ("noto-mono", 0.0, "attention", ["never saw", "trained for the measurement", "only attention"]),
        ("twemoji", 1.0, "cross-attention", ["twemoji, cross-attention, with 1", "only the attention to the prompt"]),
        ("noto-mono", 1.0, "all", ["never saw", "trained for the measurement", "1 of other styles,"]),
        ("twemoji", 0.0, "all", ["knows this style", "trained for the measurement: rank 16"]),
    ]:
        told = {"style": style, "prior": prior, "words": "", "images": 8, "how": "lcm", "known": style == "twemoji",
                "modules": modules}  # fmt: skip
        part = " ".join(forgetting.section(told | {"rows": []}).split())
        assert all(word in part for word in words)
        assert ("prior preservation" in part) == bool(prior)
