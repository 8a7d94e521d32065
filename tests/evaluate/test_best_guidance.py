"""The best guidance of a row: which are tried, which wins, and what is said of it."""

import pytest

from fewstep.configs import CompareConfig, build
from fewstep.errors import UsageError
from fewstep.evaluate.best_guidance import TriedGuidance, at_the_end, best_of, entries, grid_of, in_words, protocol_of
from fewstep.metrics.kid import KID


def search(*kids):
    """One guidance after another from 1, with these KIDs."""
    return tuple(TriedGuidance(1.0 + i, KID(kid, kid - 1, kid + 1, 2, 2, (kid, kid))) for i, kid in enumerate(kids))


def test_the_grid_is_ascending_and_without_doubles():
    assert grid_of("3, 1,1.5,3.0") == (1, 1.5, 3)
    assert grid_of(build(CompareConfig).guidance_grid) == (1, 1.5, 2, 3, 4, 6, 8)


@pytest.mark.parametrize("word", ["x", "", "-1", "50.5", "nan", "inf"])
def test_what_is_no_guidance_is_named(word):
    with pytest.raises(UsageError) as caught:
        grid_of(f"1,{word}")
    assert caught.value.message == f"guidance_grid 1,{word}: {word!r} is not a guidance scale from 0 to 50"
    assert caught.value.hint == "write guidance_grid 1,2,4,8"


@pytest.mark.parametrize(("kids", "best"), [((3, 1, 2), 2), ((-1, 0, 2), 1), ((2, 1, 1), 2), ((5,), 1)])
def test_the_smallest_kid_wins(kids, best):
    assert best_of(search(*kids)) == best


def test_a_best_one_at_an_end_is_told():
    assert at_the_end("ddim:4@best", entries(search(3, 1, 2))) == []
    assert at_the_end("ddim:4@best", entries(search(3))) == []
    for kids, best in (((1, 2, 3), 1), ((3, 2, 1), 3)):
        (note,) = at_the_end("ddim:4@best", entries(search(*kids)))
        assert (
            note == f"ddim:4@best: the best guidance, {best}, is at an end of guidance_grid; the best may lie outside"
        )


def test_the_protocol_says_how():
    config = build(CompareConfig, guidance_grid="1,2,3", images=9, search_images=7)
    rows = [{"row": "a", "guidance_search": None}, {"row": "b@best", "guidance_search": entries(search(3, 2, 1))}]
    assert protocol_of(config, rows[:1]) is None
    assert in_words(None) == []
    protocol = protocol_of(config, rows)
    assert (protocol["grid"], protocol["images"]) == ([1, 2, 3], 7)
    lines = in_words(protocol)
    assert "of 1, 2, 3 the one with the smallest KID to the reference, over the first 7 images" in lines[0]
    assert lines[1:] == protocol["notes"] == at_the_end("b@best", rows[1]["guidance_search"])
