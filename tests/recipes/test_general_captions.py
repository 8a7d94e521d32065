"""The captions `general` that ship: what the list of words gives, plain and varied."""

from collections import Counter

from fewstep.assets import GENERAL, shipped_prompt_list
from recipes.captions import CATEGORIES, COUNT, ENDINGS, MEDIA, captions


def test_what_ships_is_what_the_words_give():
    file = shipped_prompt_list(GENERAL)
    assert file is not None
    assert file.read_text(encoding="utf-8").splitlines() == captions()


def test_captions_differ_and_are_plain():
    found = captions()
    assert len(set(found)) == len(found) == COUNT
    assert all(caption == caption.strip() and "  " not in caption for caption in found)
    assert max(len(caption.split()) for caption in found) < 30


def test_some_name_a_way_to_make_the_picture_and_some_do_not():
    found = captions()
    named = sum(caption.startswith(tuple(MEDIA)) for caption in found)
    ended = sum(caption.endswith(tuple(ENDINGS)) for caption in found)
    assert 0.45 * COUNT < named < 0.55 * COUNT
    assert 0.28 * COUNT < ended < 0.4 * COUNT


def test_no_word_of_a_list_is_twice_there_and_all_are_used():
    found = " | ".join(captions())
    for category in CATEGORIES:
        for words in category:
            assert [word for word, count in Counter(words).items() if count > 1] == []
            assert [word for word in words if word not in found] == []
