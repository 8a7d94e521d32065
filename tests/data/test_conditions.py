"""Conditions on columns: what they hold for, and what is refused."""

import pytest

from fewstep.configs.conditions import parsed
from fewstep.errors import UsageError

ROW = {"score": 5.5, "text": "Fox", "n": "12", "yes": True, "empty": "", "none": None, "a b": 1, "json.x": "1e3"}


@pytest.mark.parametrize(
    "text",
    [
        "score >= 5.5",
        "score<=5.5",
        "score > 5 and n < 13",
        "n = 12.0",
        "n==12",
        "n != 13 AND score<6",
        "text = fox",
        "text='FOX'",
        'text != "a fox and b"',
        "yes = true",
        "`a b` > 0",
        "json.x = 1000",
        "  score  >  -1  ",
    ],
)
def test_what_holds(text):
    assert parsed(text).holds(ROW)


@pytest.mark.parametrize(
    "text",
    ["score > 5.5", "n < 12", "text > a", "text = cat", "empty != x", "none != x", "absent = x", "absent != x",
     "score > 5 and n > 13", "yes > 0", "score < high", "score > nan"],
)  # fmt: skip
def test_what_does_not_hold(text):
    assert not parsed(text).holds(ROW)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("", "nothing"),
        ("score", "score"),
        ("score >", "score >"),
        ("> 5", "> 5"),
        ("score >= 5 or n > 2", "score >= 5 or n > 2"),
        ("score >= 5 and", "nothing"),
        ("score >= 5 andn = 2", "score >= 5 andn = 2"),
        ("score >= 5; n = 2", "score >= 5; n = 2"),
        ("__import__('os').system('x') > 1", r"__import__('os').system('x') > 1"),
        ("text = 'a", "text = 'a"),
        ("n = 1 and score => 5", "score => 5"),
    ],
)
def test_what_is_no_condition_is_refused(text, at):
    with pytest.raises(UsageError) as caught:
        parsed(text)
    assert caught.value.message.endswith(f": this is no comparison: {at}")
    assert "COLUMN OPERATOR VALUE" in caught.value.hint


def test_columns():
    assert parsed("a > 1 and `b c` = x and a < 5").columns == {"a", "b c"}
