"""Captions for the emoji images: one table of styles, and the many ways in which a person names a drawing.

Pure functions: the same `rng` state gives the same caption. No torch.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Style:
    """One way of drawing every concept."""

    words: tuple[str, ...]  # names in captions; the first is the main one: "<words> emoji of <label>"
    package: str  # npm package of the drawings, a key of packages.PACKAGES
    licence: str  # SPDX identifier of the drawings
    split: str  # "base": for the base model; "style": only for style LoRAs


STYLES: dict[str, Style] = {
    "fluent-3d": Style(("3d glossy", "3d", "glossy 3d", "shiny 3d"), "@lobehub/fluent-emoji-3d", "MIT", "base"),
    "fluent-color": Style(
        ("gradient", "soft gradient", "modern gradient"), "@lobehub/fluent-emoji-modern", "MIT", "base"
    ),
    "fluent-flat": Style(("flat", "flat color", "simple flat"), "@lobehub/fluent-emoji-flat", "MIT", "base"),
    "noto": Style(("noto", "google noto"), "@iconify-json/noto", "Apache-2.0", "base"),
    "noto-blob": Style(("blob", "noto blob", "google blob"), "@iconify-json/noto-v1", "Apache-2.0", "base"),
    "noto-2018": Style(("noto 2018", "old noto"), "asturur-noto-emoji", "Apache-2.0", "base"),
    "twemoji": Style(("twemoji", "twitter"), "@iconify-json/twemoji", "CC-BY-4.0", "base"),
    "emojione": Style(("emojione", "emoji one"), "emojione", "CC-BY-4.0", "base"),
    "emojione-bw": Style(("black and white outline", "black and white", "outline"), "emojione", "CC-BY-4.0", "base"),
    "high-contrast": Style(("high contrast", "bold black"), "@iconify-json/fluent-emoji-high-contrast", "MIT", "style"),
    "noto-mono": Style(
        ("thin line", "line art", "monochrome line"), "@expo-google-fonts/noto-emoji", "OFL-1.1", "style"
    ),
    "fxemoji": Style(("fxemoji", "firefox"), "@iconify-json/fxemoji", "CC-BY-4.0", "style"),
}

NOUNS = ("emoji",) * 6 + ("icon", "icon", "picture", "sticker", "drawing", "drawing", "illustration")

# {style}: words of the style; {noun}: emoji, icon, ...; {thing}: label, mostly with article; {label}: bare
STYLED = (
    "{style} {noun} of {thing}",
    "{style} {noun} of {thing}",
    "{a_style} {noun} of {thing}",
    "{thing}, {style} {noun}",
    "{thing}, {style} style",
    "{thing} in {style} style",
    "{a_noun} of {thing} in {style} style",
    "{noun} of {thing}, {style}",
    "{style} {label}",
    "{style} style {label}",
    "{label} {style}",
    "{label} {noun}, {style}",
)
PLAIN = (
    "{label}",
    "{label}",
    "{thing}",
    "{thing}",
    "{label} {noun}",
    "{noun} of {thing}",
    "{a_noun} of {thing}",
)
MAIN_SHARE, STYLED_SHARE, ARTICLE_SHARE, TAG_SHARE, TAGS_ONLY_SHARE = 0.15, 0.65, 0.8, 0.3, 0.04

CHARMS = ("happy", "cute", "little", "big", "funny", "nice", "cool", "beautiful", "sad", "smiling")
COLOUR_WORDS = {"red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey", "gray"}
CHARM_SHARE, MOODY = 0.125, ("smileys-emotion", "people-body")

CONSONANT_SOUNDS = ("unic", "unif", "eu", "ewe", "one")
AN_ANYWAY = ("hour", "honest", "heir", "sos ", "ng ", "x-ray", "8", "11 ", "18")
PLURAL_LOOKALIKES = ("ss", "us", "is", "as", "os")
PLURALS = ("people", "men", "women", "children", "fries", "dice", "mathematics")
SINGULARS = ("man", "woman", "person", "face", "snowman")  # "man lifting weights", "face holding back tears"
PROPER_NAMES = ("mount", "santa", "mrs.", "mx")
UNCOUNTED = """
rice bread water milk tea sake money bacon meat butter cheese fire fog snow wind ice hail soap salt
spaghetti honey broccoli garlic popcorn sushi luggage litter badminton tennis hockey multiply plus
minus divide infinity aries taurus gemini cancer leo virgo libra scorpio sagittarius capricorn
aquarius pisces ophiuchus
"""


def spoken(label: str) -> str:
    """The label as a person types it: lower case, no quotes or brackets, a comma for a colon."""
    text = label.lower().replace(": ", ", ").replace("\u2019", "'")
    for mark in '\u201c\u201d"()!':
        text = text.replace(mark, "")
    return " ".join(text.split())


def main_caption(style: str, label: str) -> str:
    """The main caption, "<style words> emoji of <label>", which metadata.jsonl stores.

    It has no words for a style that the base model never saw. Words that a text encoder does not know spoil those that
    it knows (12 % instead of 58 % of pictures showed the requested thing), and a style LoRA needs none.
    """
    return named_caption(style, label) if STYLES[style].split == "base" else f"emoji of {spoken(label)}"


def named_caption(style: str, label: str) -> str:
    """The caption that names its style, for any style."""
    return f"{STYLES[style].words[0]} emoji of {spoken(label)}"


def article(words: str) -> str:
    """The article for `words`: 'a', 'an', or '' for plurals and uncountable things."""
    head = re.split(",| (?:with|of|in|on) ", words)[0].strip()
    first, last = (head.split() or [""])[0], (head.split() or [""])[-1]
    if first not in SINGULARS:
        plural = last.endswith("s") and not last.endswith(PLURAL_LOOKALIKES)
        if plural or last in PLURALS or first in PLURALS or last in UNCOUNTED.split() or first in PROPER_NAMES:
            return ""
    if words.startswith(AN_ANYWAY) or (len(first) == 1 and first in "aefhilmnorsx"):
        return "an"
    return "an" if words.startswith(tuple("aeiou")) and not words.startswith(CONSONANT_SOUNDS) else "a"


def with_article(words: str) -> str:
    """`words` with its article: 'a tropical fish', 'an owl', 'glasses'."""
    return f"{article(words)} {words}".strip()


def new_tags(label: str, tags: Sequence[str]) -> list[str]:
    """The tags with words that are not in the label, in their order."""
    known = set(spoken(label).split())
    return [tag for tag in map(spoken, tags) if tag and not set(tag.split()) <= known]


def caption(style: str, label: str, tags: Sequence[str], rng: random.Random) -> str:
    """One of the many ways to ask for this drawing, drawn with `rng`.

    About 15 % are `named_caption`. Two in three of the others name the style, three in ten add one or two tags, and 4 %
    consist only of tags ("fish tropical animal").
    """
    if rng.random() < MAIN_SHARE:
        return named_caption(style, label)
    bare, thing = subject(label, tags, rng)
    noun = rng.choice(NOUNS)
    words = rng.choice(STYLES[style].words)
    template = rng.choice(STYLED if rng.random() < STYLED_SHARE else PLAIN)
    return template.format(
        style=words,
        a_style=with_article(words),
        noun=noun,
        a_noun=with_article(noun),
        label=bare,
        thing=thing if rng.random() < ARTICLE_SHARE else bare,
    )


def caption_of(row: Mapping[str, Any], colour: str | None, rng: random.Random) -> str:
    """One of the many ways to ask for the drawing of this row (style, label, tags, group), drawn with `rng`.

    colour: named before the label; tags then neither replace the label nor name another colour. One thing in eight is
    called happy, cute or similar, which does not change its drawing. Faces and people get such a word only from their
    labels.
    """
    label, tags = words_of(row, colour, rng)
    return caption(row["style"], label, tags, rng)


def plain_caption(row: Mapping[str, Any], colour: str | None, rng: random.Random) -> str:
    """One of the ways to ask for the thing in this row without a style, drawn with `rng`; otherwise as caption_of."""
    label, tags = words_of(row, colour, rng)
    bare, thing = subject(label, tags, rng)
    noun = rng.choice(NOUNS)
    return rng.choice(PLAIN).format(noun=noun, a_noun=with_article(noun), label=bare, thing=thing)


def words_of(row: Mapping[str, Any], colour: str | None, rng: random.Random) -> tuple[str, Sequence[str]]:
    """The label of a row, with its colour and perhaps a word such as "happy", and the tags that may follow it."""
    charm = rng.choice(CHARMS) if row["group"] not in MOODY and rng.random() < CHARM_SHARE else ""
    label = " ".join(filter(None, (charm, colour, spoken(row["label"]))))
    return label, [tag for tag in row["tags"] if not says_colour(tag)][:1] if colour else row["tags"]


def says_colour(label: str) -> bool:
    """Whether the label contains the name of a colour."""
    return bool(set(spoken(label).split()) & COLOUR_WORDS)


def subject(label: str, tags: Sequence[str], rng: random.Random) -> tuple[str, str]:
    """The thing without and with its article: the label, the label with one or two tags, or rarely tags alone."""
    words, extra = spoken(label), new_tags(label, tags)
    kind = rng.random()
    if kind < TAGS_ONLY_SHARE and len(tags) >= 2:
        chosen = " ".join(rng.sample([spoken(tag) for tag in tags], min(len(tags), rng.choice((2, 3)))))
        return chosen, chosen
    if kind > 1 - TAG_SHARE and extra:
        picked = rng.sample(extra, min(len(extra), rng.choice((1, 1, 2))))
        if len(picked) == 1 and rng.random() < 0.4:
            return f"{picked[0]} {words}", with_article(f"{picked[0]} {words}")
        rest = rng.choice((", ", " ")).join(["", *picked])
        return words + rest, with_article(words) + rest
    return words, with_article(words)
