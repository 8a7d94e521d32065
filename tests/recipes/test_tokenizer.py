"""The emoji tokenizer: every text has ids, the same ones in every process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from recipes.emoji.tokenizer import LENGTH, byte_alphabet, learn_merges, make_tokenizer, merged

ROOT = Path(__file__).parents[2]
ROWS = [
    {"style": "noto", "label": "tropical fish", "tags": ["animal", "fish", "tropical"]},
    {"style": "twemoji", "label": "cat face", "tags": ["animal", "cat", "pet"]},
    {"style": "twemoji", "label": "castle", "tags": ["building", "european"]},
]
ENTRIES = 640


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    make_tokenizer(ROWS, folder, ENTRIES)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def test_special_tokens_are_clips(tokenizer):
    assert len(tokenizer) == ENTRIES
    assert tokenizer.model_max_length == LENGTH
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|startoftext|>", "<|endoftext|>")
    assert tokenizer.pad_token == tokenizer.eos_token
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (ENTRIES - 2, ENTRIES - 1)


@pytest.mark.parametrize("text", ["a cat", "zyxgobblin", "🐠", "你好 castle", "Ж ß é", "x" * 28, "\u200d\ufe0f"])
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.eos_token_id not in ids[1:-1]
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.lower().replace(" ", "")


def test_known_words_are_one_token_and_case_does_not_matter(tokenizer):
    assert tokenizer.tokenize("Tropical FISH") == ["tropical</w>", "fish</w>"]


def test_empty_text_is_start_and_ends(tokenizer):
    ids = tokenizer("", padding="max_length").input_ids
    assert ids == [tokenizer.bos_token_id] + [tokenizer.eos_token_id] * (LENGTH - 1)


def test_long_text_is_cut(tokenizer):
    ids = tokenizer("castle " * 100, truncation=True).input_ids
    assert len(ids) == LENGTH
    assert ids[-1] == tokenizer.eos_token_id


def test_another_process_makes_the_same_files_and_ids(folder, tokenizer, tmp_path):
    program = f"""
import json
from pathlib import Path
from recipes.emoji.tokenizer import CLIPTokenizer, make_tokenizer
make_tokenizer({ROWS!r}[::-1], Path({str(tmp_path / "again")!r}), {ENTRIES})
read = CLIPTokenizer.from_pretrained({str(folder)!r}, local_files_only=True)
print(json.dumps(read(["a shiny castle 🐠", ""]).input_ids))
"""
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == tokenizer(["a shiny castle 🐠", ""]).input_ids
    for file in sorted(folder.iterdir()):
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


def test_files_are_clips(folder):
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert list(vocabulary.values()) == list(range(ENTRIES))
    assert merges[0] == "#version: 0.2"
    assert list(vocabulary)[512:-2] == [line.replace(" ", "") for line in merges[1:]]


def test_merges_of_the_papers_example():
    words = {"low": 5, "lower": 2, "newest": 6, "widest": 3}
    counts = {(*word[:-1], word[-1] + "</w>"): count for word, count in words.items()}
    assert learn_merges(counts, 3) == [("e", "s"), ("es", "t</w>"), ("l", "o")]
    assert len(learn_merges(counts, 1000)) < 30


def test_merged_joins_from_the_left():
    assert merged(["a", "a", "a"], ("a", "a")) == ["aa", "a"]


def test_alphabet_is_every_byte_once():
    assert len(set(byte_alphabet())) == 256
