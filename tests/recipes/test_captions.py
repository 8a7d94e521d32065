"""Captions of the emoji recipe: the same seed gives the same words, and the words name the drawing."""

import random
from pathlib import Path

import pytest

from fewstep.evaluate.prompts import prompts_for
from recipes.emoji.captions import (
    COLOUR_WORDS,
    MOODY,
    STYLES,
    article,
    caption,
    caption_of,
    main_caption,
    new_tags,
    spoken,
    with_article,
)
from tests.recipes.made import made

FISH = ("tropical fish", ["animal", "fish", "fishes", "tropical"])


def draw(count, seed=0, style="fluent-3d", subject=FISH):
    rng = random.Random(seed)
    return [caption(style, *subject, rng) for _ in range(count)]


def test_main_caption_is_style_words_and_label():
    assert main_caption("fluent-3d", "tropical fish") == "3d glossy emoji of tropical fish"
    assert main_caption("noto", "Japanese \u201chere\u201d button") == "noto emoji of japanese here button"


def test_same_rng_gives_same_captions_and_another_gives_others():
    assert draw(200) == draw(200)
    assert draw(200) != draw(200, seed=1)


def test_captions_name_the_label_or_at_least_a_tag():
    label, tags = FISH
    for text in draw(500):
        assert label in text or any(tag in text.split() for tag in tags), text


def test_captions_vary_and_often_name_the_style():
    texts = draw(1000)
    styled = sum(any(words in text for words in STYLES["fluent-3d"].words) for text in texts)
    assert len(set(texts)) > 200
    assert 0.6 < styled / len(texts) < 0.8
    assert "tropical fish" in texts
    assert main_caption("fluent-3d", "tropical fish") in texts


@pytest.mark.parametrize("style", STYLES)
def test_no_caption_has_holes(style):
    for label, tags in (FISH, ("cat", []), ("keycap: *", ["*"]), ("kiss: man, man", ["couple"])):
        for text in draw(60, style=style, subject=(label, tags)):
            assert text
            assert text == " ".join(text.split())
            assert "{" not in text
            assert text == text.lower()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("castle", "a castle"),
        ("owl", "an owl"),
        ("unicorn", "a unicorn"),
        ("hourglass done", "an hourglass done"),
        ("sos button", "an sos button"),
        ("o button blood type", "an o button blood type"),
        ("one o'clock", "a one o'clock"),
        ("glasses", "glasses"),
        ("octopus", "an octopus"),
        ("man lifting weights", "a man lifting weights"),
        ("people with bunny ears", "people with bunny ears"),
        ("santa claus", "santa claus"),
        ("water buffalo", "a water buffalo"),
    ],
)
def test_articles(words, expected):
    assert with_article(words) == expected


def test_article_of_nothing_is_harmless():
    assert article("") == "a"


def test_spoken_drops_marks_and_colons():
    assert spoken("family: man, woman") == "family, man, woman"
    assert spoken("A button (blood type)") == "a button blood type"
    assert spoken("man\u2019s shoe") == "man's shoe"


def test_new_tags_say_something_new():
    assert new_tags(*FISH) == ["animal", "fishes"]


def test_styles_kept_out_of_the_base():
    assert {name for name, style in STYLES.items() if style.split == "style"} == {
        "high-contrast",
        "noto-mono",
        "fxemoji",
    }
    firsts = [style.words[0] for style in STYLES.values()]
    assert len(set(firsts)) == len(firsts)


def test_only_what_the_base_knows_is_named():
    assert main_caption("noto", "castle") == "noto emoji of castle"
    assert main_caption("high-contrast", "castle") == "emoji of castle"


# --- the prompts that no caption is -------------------------------------------------------------------------


def labels() -> dict[str, list[str]]:
    """The labels of the data set, and the tags of each."""
    lines = (Path(__file__).parent / "labels.tsv").read_text(encoding="utf-8").splitlines()
    return {label: tags.split(";") for label, _, tags in (line.partition("\t") for line in lines)}


def test_the_typed_prompts_are_none_that_captions_make():
    typed = [prompt.text for prompt in prompts_for(Path("typed"), None).prompts]
    assert len(set(typed)) == len(typed) >= 200
    assert made(typed, labels()) == []


def test_captions_are_told_from_other_texts():
    rng, known = random.Random(0), labels()
    rows = [{"style": rng.choice([*STYLES]), "label": label, "tags": tags, "group": rng.choice(["objects", MOODY[0]])}
            for label, tags in rng.choices([*known.items()], k=400)]  # fmt: skip
    texts = [caption_of(row, rng.choice([None, *sorted(COLOUR_WORDS)]), rng) for row in rows]
    texts += [main_caption(row["style"], row["label"]) for row in rows]
    assert made(texts, known) == texts
    others = ["a cat and a dog", "a happy happy robot", "robot a", "robot emoji of", "a wooden robot", "cat dog"]
    assert made([*others, "a happy red robot", "green dragon"], known) == ["a happy red robot", "green dragon"]
