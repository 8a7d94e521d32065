"""Which texts the caption generator can make, told by taking them apart as it puts captions together."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product

from recipes.emoji.captions import CHARMS, COLOUR_WORDS, NOUNS, PLAIN, STYLED, STYLES, new_tags, spoken, with_article

STYLE_WORDS = sorted({word for style in STYLES.values() for word in style.words})
TEMPLATES = {  # what stands before and after the label
    tuple(
        template.format(
            style=style, a_style=with_article(style), noun=noun, a_noun=with_article(noun), label="\0", thing="\0"
        ).split("\0")
    )
    for template, style, noun in product(
        [*STYLED, *PLAIN, "{style} emoji of {label}", "emoji of {label}"], STYLE_WORDS, set(NOUNS)
    )
}


def made(texts: Iterable[str], labels: Mapping[str, Sequence[str]]) -> list[str]:
    """Those that `captions.caption_of` can give of a drawing, in any colour; labels: the tags of each.

    A text that it cannot give may be among them, never the other way round.
    """
    tags_of = {
        spoken(label): [spoken(tag) for tag in [*tags, *new_tags(label, tags)]] for label, tags in labels.items()
    }
    words_of = {label: {word for tag in tags for word in tag.split()} for label, tags in tags_of.items()}
    return [text for text in texts if any(is_subject(one, tags_of, words_of) for one in subjects(text))]


def subjects(text: str) -> set[str]:
    """What may stand for the label in some template, with and without an article before it."""
    middles = {
        text[len(before) : len(text) - len(after)]
        for before, after in TEMPLATES
        if text.startswith(before) and text.endswith(after) and len(text) > len(before) + len(after)
    }
    return {one for middle in middles for one in (middle, re.sub("^an? ", "", middle))}


def is_subject(text: str, tags_of: Mapping[str, Sequence[str]], words_of: Mapping[str, set[str]]) -> bool:
    """Whether `captions.subject` can give the text, of a label with a charm or a colour before it or without."""
    words = set(text.split())
    return any(
        (words <= words_of[label] and is_tags(text, tags, 2, 3))
        or (label in text and any(is_of_label(text, f"{before}{label}", tags) for before in befores(words)))
        for label, tags in tags_of.items()
    )


def befores(words: set[str]) -> list[str]:
    """The charms and colours among the words, one of each or none, as they stand before a label."""
    charms, colours = (["", *(f"{word} " for word in sorted(words & set(known)))] for known in (CHARMS, COLOUR_WORDS))
    return [charm + colour for charm, colour in product(charms, colours)]


def is_of_label(text: str, words: str, tags: Sequence[str]) -> bool:
    """Whether the text is the words alone, after a tag, or before one or two."""
    before, found, after = text.partition(words)
    if not found:
        return False
    alone = not after or (after[0] in ", " and is_tags(after.replace(", ", " ").strip(), tags, 1, 2))
    return (not before and alone) or (not after and before.endswith(" ") and before[:-1] in tags)


def is_tags(text: str, tags: Sequence[str], fewest: int, most: int) -> bool:
    """Whether the text is so many of the tags, one after another."""
    return (fewest <= 1 and text in tags) or (
        most > 1
        and any(
            text.startswith(f"{tag} ") and is_tags(text[len(tag) + 1 :], tags, fewest - 1, most - 1) for tag in tags
        )
    )
