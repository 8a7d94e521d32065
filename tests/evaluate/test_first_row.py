"""A row beside the first: the ratios and differences, what of them is told, and how."""

import pytest

from fewstep.evaluate.first_row import COLUMNS, comparison, in_words, others, table_of, title
from fewstep.evaluate.measure import Measures
from fewstep.evaluate.table import cells
from fewstep.evaluate.teacher import TeacherMeasures
from fewstep.metrics.agreement import Agreement
from fewstep.metrics.estimate import Estimate
from fewstep.metrics.kid import KID

HITS = (True, True, True, False) * 8


def row(name, **numbers):
    return {"row": name, "speedup": 1.0} | numbers


def kid(*values):
    return KID(sum(values) / len(values), 0, 0, len(values), 2, values)


def agreement(hits):
    return Agreement(sum(hits) / len(hits), 0.1, len(hits), 0, tuple(hits))


def beside(kid, mind):
    """A row beside the teacher, of two groups of prompts."""
    return TeacherMeasures(Estimate(*kid), None, None, Estimate(*mind), Estimate(1.0, (1.0, 1.0)))


def test_the_numbers():
    found = comparison(
        row("b", speedup=4.0),
        Measures(None, kid(3.0, 4.5, 6.0), agreement=agreement((True, False) * 16),
                 to_teacher=beside((5.0, (4.0, 6.0)), (2.0, (2.0, 2.0)))),
        row("a"),
        Measures(None, kid(1.0, 2.0, 3.0), agreement=agreement(HITS),
                 to_teacher=beside((3.0, (2.0, 3.0)), (1.0, (1.0, 1.0)))),
    )  # fmt: skip
    assert (found["kid_t_difference"], found["mind_difference"], found["speedup"]) == (2, 1, 4)
    margin = 12.7062 * 0.5  # of differences 2 and 3 without a group, by 1 degree of freedom
    assert found["kid_t_difference_high"] - 2 == pytest.approx(margin, rel=1e-4)
    assert found["mind_difference_low"] == found["mind_difference_high"] == 1
    margin = 4.30265 * 0.5 / 3**0.5  # of differences 2, 2.5, 3, by 2 degrees of freedom
    assert found["kid_difference"] == 2.5
    assert found["kid_difference_high"] - 2.5 == pytest.approx(margin, rel=1e-4)
    assert 2.5 - found["kid_difference_low"] == pytest.approx(margin, rel=1e-4)
    assert found["agreement_ratio"] == pytest.approx(2 / 3)
    assert 0.3 < found["agreement_ratio_low"] < 2 / 3 < found["agreement_ratio_high"] < 1


def test_what_is_not_measured_of_both_is_none():
    first = Measures(kid=kid(1.0, 2.0), agreement=agreement(HITS))
    found = comparison(row("b"), Measures([3.0]), row("a"), first)
    assert found.pop("speedup") == 1
    assert set(found.values()) == {None}


def test_the_table_shows_what_was_measured():
    first, measures = row("a"), Measures([20.0], kid(0.001, 0.003), to_teacher=beside((1, (1, 1)), (1, (1, 1))))
    other = row("b")
    rows = [first | {"beside_first": None}, other | {"beside_first": comparison(other, measures, first, measures)}]
    titles, lines = cells(others(rows), COLUMNS)
    assert titles == ["row", "KID-T difference x 1000 [95 %]", "MIND difference [95 %]",
                      "KID difference x 1000 [95 %]", "times as fast"]  # fmt: skip
    assert lines == [["b", *["+0.00 [+0.00, +0.00]"] * 3, "1.00"]]
    difference, jackknifed = in_words(rows)
    assert difference.startswith(
        "KID difference: a row's KID minus that of a; 95 % interval of the differences block by"
    )
    assert jackknifed.startswith("KID-T difference, MIND difference: compared with a; 95 % interval by the jackknife")


def test_times_as_fast_are_left_out_of_rows_not_timed_in_turns():
    first, other = row("a", speedup=None), row("b", speedup=None)
    rows = [first | {"beside_first": None}, other | {"beside_first": comparison(other, Measures(), first, Measures())}]
    assert table_of(rows) is None
    assert table_of([first, other | {"beside_first": {"speedup": 2.0}}]) == (
        ["row", "times as fast"],
        [["b", "2.00"]],
    )
    (line,) = in_words(rows)
    assert line.startswith("times as fast: left out")
    assert in_words(rows[:1]) == []


def test_what_is_in_a_row_though_nobody_typed_it_is_said():
    shipped = [{"file": "lcm", "weight": 1.0}]
    rows = [row("lcm:4@1", lora=shipped), row("lcm:4+lcm:1", lora=shipped), row("ddim:4", lora=[]), row("ddim:8")]
    rows = [one | {"beside_first": {"speedup": 2.0}} for one in rows]
    expected = ["lcm:4@1 (with lcm:1)", "lcm:4+lcm:1", "ddim:4", "ddim:8"]
    assert [line[0] for line in cells(rows)[1]] == expected
    assert [line[0] for line in cells(others(rows), COLUMNS)[1]] == expected[1:]
    assert [line[0] for line in cells(others(rows[::-1]), COLUMNS)[1]] == expected[2::-1]
    assert title(rows) == "Compared with lcm:4@1 (with lcm:1)"
