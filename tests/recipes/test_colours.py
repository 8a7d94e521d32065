"""Drawings in other colours: only the main colour changes, it has the right name, and captions say it."""

import random

import numpy as np
import pytest

from recipes.emoji.captions import CHARMS, caption_of
from recipes.emoji.colours import (
    COLOURS,
    PALETTE,
    main_colour,
    may_change,
    name_of,
    oklab,
    other_colours,
    recoloured,
    srgb,
)

ROBOT = {"style": "noto", "label": "robot", "tags": ["face", "red alert"], "group": "objects"}


def ball(colour, paper=255):
    """A ball with a black outline and a white eye, and where each of the three is."""
    y, x = np.mgrid[:64, :64] - 31.5
    radius = np.hypot(x, y)
    parts = {"body": radius < 26, "outline": (radius >= 26) & (radius < 30), "eye": np.hypot(x - 8, y + 8) < 5}
    image = np.full((64, 64, 3), paper, np.uint8)
    for name, rgb in (("body", PALETTE[colour]), ("outline", (0, 0, 0)), ("eye", (255, 255, 255))):
        image[parts[name]] = rgb
    return image, parts | {"body": parts["body"] & ~parts["eye"]}


def test_oklab_is_ottossons():
    """The table of pairs in Ottosson 2020 is of XYZ; white, and red as CSS Color 4 gives it, are of sRGB."""
    np.testing.assert_allclose(oklab(np.array([255, 255, 255], np.uint8)), [1, 0, 0], atol=1e-3)
    np.testing.assert_allclose(oklab(np.array([255, 0, 0], np.uint8)), [0.628, 0.225, 0.126], atol=1e-3)


def test_srgb_undoes_oklab():
    rgb = np.random.default_rng(0).integers(0, 256, (500, 3), dtype=np.uint8)
    assert np.abs(srgb(oklab(rgb)).astype(int) - rgb).max() <= 1


@pytest.mark.parametrize("colour", PALETTE)
def test_a_colour_is_called_by_its_name(colour):
    assert name_of(main_colour(ball(colour)[0])) == colour


@pytest.mark.parametrize("colour", PALETTE)
def test_the_main_colour_alone_is_replaced(colour):
    image, parts = ball("green")
    changed = recoloured(image, main_colour(image), colour)
    assert np.abs(changed[parts["body"]].astype(int) - PALETTE[colour]).max() <= 2
    others = ~parts["body"]
    assert np.array_equal(changed[others], image[others])


def test_shades_of_a_colour_stay_its_shades():
    image, parts = ball("green")
    body = np.argwhere(parts["body"])
    image[tuple(body[body[:, 0] > 31].T)] = (50, 145, 58)
    changed = oklab(recoloured(image, main_colour(image), "blue"))
    upper, lower = (changed[tuple(part.T)].mean(0) for part in (body[body[:, 0] <= 31], body[body[:, 0] > 31]))
    assert lower[0] < upper[0] - 0.03
    assert min(np.linalg.norm(part - COLOURS["blue"]) for part in (upper, lower)) < 0.1


def test_nothing_is_drawn_of_an_empty_picture():
    blank = np.full((8, 8, 3), 255, np.uint8)
    main = main_colour(blank)
    assert main.share == 0
    assert other_colours(main, 2, random.Random(0)) == []
    assert name_of(main) is None


def test_other_colours_are_not_its_own():
    main = main_colour(ball("red")[0])
    drawn = [other_colours(main, 2, random.Random(seed)) for seed in range(200)]
    assert {name for names in drawn for name in names} == PALETTE.keys() - {"red"}
    assert all(len(set(names)) == 2 for names in drawn)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"label": "red heart"}, False),
        ({"label": "Orange Book"}, False),
        ({"group": "people-body"}, False),
        ({"group": "symbols"}, False),
        ({"style": "emojione-bw"}, False),
    ],
)
def test_what_its_colours_make_stays_as_it_is(change, expected):
    assert may_change(ROBOT | change) is expected


def test_captions_of_a_colour_say_it_and_no_other():
    for seed in range(300):
        text = caption_of(ROBOT, "blue", random.Random(seed))
        assert "blue robot" in text, text
        assert "red" not in text.split(), text


def test_captions_without_a_colour_name_none():
    plain = [caption_of(ROBOT | {"tags": ["face"]}, None, random.Random(seed)) for seed in range(300)]
    assert not any(set(text.split()) & PALETTE.keys() for text in plain)
    charming = sum(bool(set(text.split()) & set(CHARMS)) for text in plain)
    assert 10 < charming < 80


def test_a_face_is_called_happy_only_by_its_label():
    face = {"style": "noto", "label": "crying face", "tags": [], "group": "smileys-emotion"}
    texts = [caption_of(face, None, random.Random(seed)) for seed in range(300)]
    assert not any(set(text.split()) & set(CHARMS) for text in texts)
