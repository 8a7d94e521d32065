"""docs/pixel-space.md: it is of its figures, and its sentences follow from them."""

import json

import pytest

from studies.pages import DOCS
from studies.pixels import WAYS, page, rough, sentence, spread, table, undertrained, untrained


def kid(value: float, half: float = 0.001) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def test_the_page_is_of_its_figures() -> None:
    document = json.loads((DOCS / "pixel-space.json").read_text(encoding="utf-8"))
    assert (DOCS / "pixel-space.md").read_text(encoding="utf-8") == page(document), "run python -m studies.pixels"
    assert [(row["model"], row["solver"], row["steps"]) for row in document["rows"]] == [tuple(way) for way in WAYS]


def test_a_sentence_names_the_nearest_and_whether_that_is_certain() -> None:
    text = sentence(1, {"teacher": kid(0.3), "cd": kid(0.1), "ct": kid(0.2)})
    assert text == "In 1 step, CD is nearest to the teacher's pictures in 50 steps."
    text = sentence(4, {"teacher": kid(0.1, 0.05), "cd": kid(0.2), "ct": kid(0.12)})
    expected = "In 4 steps, the teacher with DDIM is nearest to the teacher's pictures, but its interval overlaps with"
    assert text == f"{expected} that of CT."


def test_a_teacher_that_learnt_too_little_is_named() -> None:
    rows = [{"kid": kid(0.5)}, {"kid": kid(0.6)}, {"kid": kid(0.4)}]
    assert untrained(rows[:2]) == []
    assert untrained(rows)[0].startswith("The teacher in 50 steps is further from the drawings than some")


def test_a_student_that_was_trained_too_little_is_named() -> None:
    teacher = [{"model": "teacher", "steps": steps, "kid": kid(0.3)} for steps in (50, 2)]
    cd, ct = ({"model": name, "steps": 1, "kid": kid(0.2)} for name in ("cd", "ct"))
    assert undertrained([*teacher, cd, ct]) == []
    (text,) = undertrained([*teacher, cd, ct | {"kid": kid(0.31)}])
    assert text.startswith("CT has had too short a training")


def test_a_short_training_is_named() -> None:
    assert rough(1.0) == []
    (text,) = rough(0.04)
    assert text.startswith("The models of this page have had 4 % of its steps")


def test_the_table_has_thousandths_and_half_an_interval() -> None:
    row = {"model": "cd", "solver": "lcm", "steps": 2, "nfe": 2.0, "kid": kid(0.1234), "kid_teacher": kid(0.01, 0.002)}
    assert [cell.strip() for cell in table([row]).splitlines()[-1].strip("|").split("|")] == [
        "CD",
        "lcm",
        "2",
        "2",
        "123.4 ± 1.0",
        "10.0 ± 2.0",
    ]


@pytest.mark.parametrize(("count", "expected"), [(3, [0, 3, 6]), (9, list(range(9))), (20, list(range(9)))])
def test_a_spread_is_over_the_whole_list(count: int, expected: list[int]) -> None:
    assert spread(list(range(9)), count) == expected
