"""Which weights are tried, and which are best."""

import pytest

from fewstep.errors import UsageError
from fewstep.evaluate.candidates import (
    LoraWeight,
    Scored,
    WeightPair,
    block_moves,
    coarse,
    grid_of,
    neighbours,
    ranked,
    spacing,
    typed,
)
from fewstep.metrics.estimate import Estimate
from fewstep.models.references import parse_reference


def scored(style: float, distance: tuple[float, ...], agreement: float | None) -> Scored:
    """Distances: the number without each of two groups; its value is their mean."""
    of = Estimate(sum(distance) / len(distance), distance)
    return Scored(
        WeightPair(LoraWeight(style), LoraWeight(1.0)),
        of,
        None if agreement is None else Estimate(agreement, (0.0, 0.0)),
    )


def test_a_grid_is_one_list_or_two():
    assert grid_of("0.8,0.6,0.8") == ((0.6, 0.8), (0.6, 0.8))
    assert grid_of("0.5:0.9,1") == ((0.5,), (0.9, 1.0))
    assert len(coarse(grid_of("0.6,0.8,1.0"))) == 9
    assert (spacing((0.6, 0.8, 1.2)), spacing((1.0,))) == (pytest.approx(0.2), 0.2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.6,x", "grid 0.6,x: 'x' is not a weight above 0"),
        ("0,1", "grid 0,1: '0' is not a weight above 0"),
        ("-1", "grid -1: '-1' is not a weight above 0"),
        ("nan", "grid nan: 'nan' is not a weight above 0"),
        ("inf", "grid inf: 'inf' is not a weight above 0"),
        ("", "grid : '' is not a weight above 0"),
        ("1:1:1", "grid 1:1:1: 3 lists"),
    ],
)
def test_a_grid_that_is_none(text, message):
    with pytest.raises(UsageError) as caught:
        grid_of(text)
    assert caught.value.message == message


def test_neighbours_lie_around_the_best():
    best = WeightPair(LoraWeight(0.8), LoraWeight(0.1))
    found = neighbours(best, (0.1, 0.1))
    assert [(p.style.of, p.acceleration.of) for p in found] == [(0.7, 0.1), (0.9, 0.1), (0.8, 0.2)]  # 0 is no weight


def test_blocks_are_typed_as_they_are_read():
    less, more = block_moves(WeightPair(LoraWeight(0.8), LoraWeight(1.0)), "style", "mid", 0.1)
    assert less.loras("a.safetensors", "lcm") == ("a.safetensors:0.8,mid=0.7", "lcm:1")
    read = parse_reference(less.loras("a.safetensors", "lcm")[0])
    assert (read.weight_of("mid_block.x"), read.weight_of("up_blocks.0.x")) == (0.7, 0.8)
    again = block_moves(more, "style", "mid", 0.1)
    assert [pair.style.blocks for pair in again] == [(), (("mid", 1.0),)]  # back where it was: no block is said
    assert typed(("my style.safetensors:0.8", "lcm:1")) == "--lora 'my style.safetensors:0.8' --lora lcm:1"


def test_among_those_within_error_agreement_decides():
    near, tied, far = scored(0.6, (9.0, 11.0), 0.1), scored(0.8, (12.0, 9.0), 0.3), scored(1.0, (29.0, 31.0), 0.9)
    assert [one.pair.style.of for one in ranked([far, near, tied])] == [0.8, 0.6, 1.0]
    assert [one.pair.style.of for one in ranked([far, near])] == [0.6, 1.0]


def test_without_agreement_distance_decides():
    near, tied = scored(0.6, (9.0, 11.0), None), scored(0.8, (12.0, 9.0), None)
    assert [one.pair.style.of for one in ranked([tied, near])] == [0.6, 0.8]


def test_an_equal_offset_of_all_groups_is_no_error():
    near, behind = scored(0.6, (9.0, 11.0), 0.1), scored(0.8, (9.5, 11.5), 0.3)
    assert [one.pair.style.of for one in ranked([behind, near])] == [0.6, 0.8]
