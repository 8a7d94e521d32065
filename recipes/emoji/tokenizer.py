"""Makes the embedded model's tokenizer: CLIP's byte-level BPE with about 2,000 entries, learnt on the captions.

    python -m recipes.emoji.tokenizer [--out ~/.cache/fewstep/emoji/tokenizer]

Every byte is an entry, so every text has ids. teacher.py makes the tokenizer if it is missing.
"""

import json
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from transformers import CLIPTokenizer

from fewstep.cli import main_of
from fewstep.configs import Config
from fewstep.io import atomic_folder, cache_dir
from recipes.emoji.built import read_metadata
from recipes.emoji.captions import STYLES, caption, spoken

START, END, SUFFIX = "<|startoftext|>", "<|endoftext|>", "</w>"
LENGTH = 32  # tokens of a caption, start and end included
ENTRIES = 2000

SymbolPair = tuple[str, str]
CaptionRow = Mapping[str, Any]  # at least style, label, tags


class TokenizerConfig(Config):
    """Learn the embedded model's tokenizer from the captions of the emoji image folder."""

    images: Path = cache_dir() / "emoji" / "images"
    """The folder that dataset.py built."""
    out: Path = cache_dir() / "emoji" / "tokenizer"
    """The tokenizer's folder."""
    entries: Annotated[int, Field(ge=514)] = ENTRIES
    """Size of the vocabulary; 512 entries are single bytes and two are the start and end of a text."""


def corpus(rows: Iterable[CaptionRow]) -> Iterator[str]:
    """Captions of every concept in every style, including those of style LoRAs, and its tags. Always the same."""
    concepts = sorted({(row["label"], tuple(row["tags"])) for row in rows})
    rng = random.Random(0)
    for label, tags in concepts:
        yield from (caption(style, label, tags, rng) for style in STYLES)
        yield from (spoken(tag) for tag in tags)


def byte_alphabet() -> list[str]:
    """The 256 characters that stand for bytes, in CLIP's order: printable ones for themselves, then the others."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(i) for i in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def word_counts(texts: Iterable[str]) -> Counter[tuple[str, ...]]:
    """Word -> number of occurrences. Words are split as in CLIP, into byte characters, with the suffix on the last."""
    backend = untrained().backend_tokenizer
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text)):
            counts[*word[:-1], word[-1] + SUFFIX] += 1
    return counts


def learn_merges(counts: Mapping[tuple[str, ...], int], number: int) -> list[SymbolPair]:
    """The `number` merges of byte-pair encoding (arXiv 1508.07909, Algorithm 1). Ties go to the first in order.

    There are fewer if all words are whole earlier.
    """
    words = [list(word) for word in counts]
    often = list(counts.values())
    totals: Counter[SymbolPair] = Counter()
    places: defaultdict[SymbolPair, set[int]] = defaultdict(set)
    for i, word in enumerate(words):
        for pair in pairwise(word):
            totals[pair] += often[i]
            places[pair].add(i)
    merges: list[SymbolPair] = []
    while len(merges) < number and totals:
        best = min(totals, key=lambda pair: (-totals[pair], pair))
        merges.append(best)
        for i in places.pop(best):
            for pair in pairwise(words[i]):
                totals[pair] -= often[i]
            words[i] = merged(words[i], best)
            for pair in pairwise(words[i]):
                totals[pair] += often[i]
                places[pair].add(i)
        totals = +totals  # those that still occur
    return merges


def merged(word: Sequence[str], pair: SymbolPair) -> list[str]:
    """The word with every occurrence of `pair` joined, from the left."""
    out: list[str] = []
    i = 0
    while i < len(word):
        joined = tuple(word[i : i + 2]) == pair
        out.append("".join(pair) if joined else word[i])
        i += 1 + joined
    return out


def untrained() -> CLIPTokenizer:
    """A tokenizer without merges, which splits text into words as CLIP does."""
    return CLIPTokenizer({START: 0, END: 1}, [])


def vocabulary(merges: Iterable[SymbolPair]) -> dict[str, int]:
    """Entry -> id, in CLIP's order: bytes, bytes that end a word, merges, start, end."""
    alphabet = byte_alphabet()
    entries = [*alphabet, *(x + SUFFIX for x in alphabet), *map("".join, merges), START, END]
    return {entry: i for i, entry in enumerate(entries)}


def make_tokenizer(rows: Iterable[CaptionRow], out: Path, entries: int = ENTRIES) -> None:
    """Write the tokenizer learnt from these rows to the folder `out`, whole or not at all.

    transformers 4 reads vocab.json and merges.txt, transformers 5 reads tokenizer.json.
    """
    merges = learn_merges(word_counts(corpus(rows)), entries - len(vocabulary([])))
    entry_ids = vocabulary(merges)
    tokenizer = CLIPTokenizer(entry_ids, merges, model_max_length=LENGTH)
    with atomic_folder(out) as folder:
        tokenizer.save_pretrained(folder)
        (folder / "vocab.json").write_text(json.dumps(entry_ids, ensure_ascii=False), encoding="utf-8")
        lines = ["#version: 0.2", *map(" ".join, merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def run(config: TokenizerConfig) -> None:
    """Make the tokenizer."""
    make_tokenizer(read_metadata(config.images, ["base"]), config.out, config.entries)
    print(config.out)


if __name__ == "__main__":
    sys.exit(main_of(TokenizerConfig, run))
