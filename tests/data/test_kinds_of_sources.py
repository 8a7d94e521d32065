"""Every kind of source gives the same images and captions, in parts, filtered, and opened in any order."""

import random

import pytest

from fewstep.configs.conditions import parsed
from fewstep.data.sources import list_samples, open_source
from fewstep.data.sources.filters import Filters
from fewstep.errors import FewstepError, Line
from tests.data.kinds import KINDS, PICTURES, comma, expected, folder, listed, pack, shards, tar

kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@kinds
def test_images_and_captions_are_those_that_were_given(tmp_path, kind):
    given = kind(tmp_path, PICTURES)
    assert listed(given) == expected(PICTURES, kind is comma)
    assert listed(str(given)) == listed(given)
    if kind not in (comma,):
        assert [image for image, _ in listed(given, captioned=False)] == [p.png for p in PICTURES]


@kinds
def test_samples_open_in_any_order_and_again(tmp_path, kind):
    samples = list_samples(kind(tmp_path, PICTURES)).samples
    order = [*range(4), *random.Random(0).sample(range(4), 4), 3, 0, 3]
    assert [samples[i].open() for i in order] == [PICTURES[i].png for i in order]


@kinds
def test_keys_and_stamps_are_one_for_each(tmp_path, kind):
    given = kind(tmp_path, PICTURES)
    samples = list_samples(given).samples
    stamps = [sample.stamp for sample in samples]
    assert len({sample.key for sample in samples}) == len(set(stamps)) == 4
    assert all(str(tmp_path) in sample.key for sample in samples)
    assert [sample.stamp for sample in list_samples(given).samples] == stamps


@kinds
def test_the_parts_are_the_whole(tmp_path, kind):
    given = kind(tmp_path, PICTURES)
    for of in (1, 2, 3, 7):
        keys = [item.key for rank in range(of) for item in open_source(given).part(rank, of)]
        assert sorted(keys) == sorted(item.key for item in open_source(given))
    halves = [open_source(given).part(rank, 2).part(again, 2) for rank in range(2) for again in range(2)]
    keys = [item.key for half in halves for item in half]
    assert sorted(keys) == sorted(item.key for item in open_source(given))


@kinds
def test_columns_choose_images(tmp_path, kind):
    given = kind(tmp_path, PICTURES)
    chosen = Filters(condition=parsed("score >= 5.5 and score<9"))
    assert listed(given, filters=chosen) == expected(PICTURES[1:3], kind is comma)
    listing = list_samples(given, filters=chosen)
    assert [Line(text) for text in listing.notes] == [f"left out of {given}: 2 images by where"]
    with pytest.raises(FewstepError, match=r"^where: no image has a column scoer\n\nhint: check its name"):
        list_samples(given, filters=Filters(condition=parsed("scoer > 1")))


@kinds
def test_sizes_and_numbers_choose_images(tmp_path, kind):
    given = kind(tmp_path, PICTURES)
    assert listed(given, filters=Filters(min_size=10)) == expected(PICTURES[:3], kind is comma)
    assert listed(given, filters=Filters(min_size=20)) == expected(PICTURES[1:2], kind is comma)
    assert listed(given, filters=Filters(max_samples=2)) == expected(PICTURES[:2], kind is comma)
    assert listed(given, filters=Filters(10, parsed("score>5"), True, 1)) == expected(PICTURES[1:2], kind is comma)


def test_shards_are_split_whole_where_there_are_enough(tmp_path):
    source = open_source(shards(tmp_path, PICTURES))
    assert [[item.key[-7:] for item in source.part(rank, 2)] for rank in range(2)] == [
        ["r/a.png", "r/b.png"],
        ["b/c.png", "b/d.png"],
    ]


@pytest.mark.parametrize("pattern", ["*.tar", "00?.tar", "{000,001}.tar", "{00..00}{0..1}.tar", "**/*.tar"])
def test_patterns_of_shards(tmp_path, pattern):
    shards(tmp_path, PICTURES)
    assert listed(f"{tmp_path}/{pattern}") == expected(PICTURES)


def test_patterns_that_fit_nothing_are_refused(tmp_path):
    with pytest.raises(FewstepError, match=r"^no file fits .*/\*\.tar\n\nhint: check the pattern"):
        list_samples(f"{tmp_path}/*.tar")
    with pytest.raises(FewstepError, match=r"^data not found: .*/001\.tar\n"):
        list_samples(f"{tmp_path}/{{001..002}}.tar")
    with pytest.raises(FewstepError, match=r"a list counts from 2 to 1\n"):
        list_samples(f"{tmp_path}/{{2..1}}.tar")
    with pytest.raises(FewstepError, match=r"names more than 1,000,000 files\n"):
        list_samples(f"{tmp_path}/{{0..9999}}{{0..9999}}.tar")


def test_a_shard_of_webdataset(tmp_path):
    """Its keys end at the first dot, other files of a key are left out, and a text comes before JSON."""
    a, b = PICTURES[:2]
    pack(
        tmp_path / "0.tar",
        [
            ("0000.jpg", a.png),
            ("0000.seg.png", b.png),
            ("0000.cls", b"7"),
            ("0000.json", b'{"caption": "in json", "score": 1}'),
            ("0001.webp", b.png),
            ("0001.txt", b"in text"),
            ("0001.json", b'{"caption": "in json", "score": 2}'),
            ("0002.original.png", b.png),
            ("0002.caption", b" by the first dot \n"),
        ],
    )
    assert listed(tmp_path / "0.tar") == [
        (a.png, ("in json",)),
        (b.png, ("in text",)),
        (b.png, ("by the first dot",)),
    ]
    assert list_samples(tmp_path / "0.tar").notes == (
        f"left out of {tmp_path / '0.tar'}: 1 image beside another of the same key",
    )
    assert len(listed(tmp_path / "0.tar", filters=Filters(condition=parsed("score = 2")))) == 1


def test_a_folder_with_dots_in_its_names_in_an_archive(tmp_path):
    """Order does not matter, and a name counts to its last dot where it has a caption of its own."""
    a, b = PICTURES[:2]
    entries = [("x/v.2.txt", b"two"), ("x/v.1.png", a.png), ("x/v.2.png", b.png), ("x/v.1.txt", b"one")]
    for name in ("x.tar", "x.zip"):
        assert listed(pack(tmp_path / name, entries)) == [(a.png, ("one",)), (b.png, ("two",))]


def test_hidden_files_of_an_archive_are_passed_over(tmp_path):
    entries = [("a.png", b"1"), ("a.txt", b"an a"), ("._a.png", b"2"), (".git/b.png", b"3"), ("__MACOSX/._a.png", b"4"),
               ("n.md", b""), ("c.gif", b""), ("d.tar", b"")]  # fmt: skip
    for name in ("x.tar", "x.zip"):
        path = pack(tmp_path / name, entries)
        assert listed(path) == [(b"1", ("an a",))]
        assert list_samples(path).notes == (f"left out of {path}: 1 .gif file, 1 .tar file",)


def test_a_folder_of_tables_and_shards_names_the_pattern(tmp_path):
    tar(tmp_path, PICTURES)
    with pytest.raises(FewstepError, match=r"no images in .* \(left out: 1 \.tar file\)\n\nhint: give '.*/\*\.tar'"):
        list_samples(tmp_path)


def test_captions_in_json_beside_an_image(tmp_path):
    folder(tmp_path, PICTURES[:1])
    (tmp_path / "a.txt").write_text("the text")
    assert [captions for _, captions in listed(tmp_path)] == [("the text",)]
    (tmp_path / "a.txt").unlink()
    (tmp_path / "a.json").write_text('{"text": 7}')
    with pytest.raises(FewstepError, match=r"^no caption for .*a\.png"):
        list_samples(tmp_path)
    (tmp_path / "a.json").write_text('{"text"')
    with pytest.raises(FewstepError, match=r"a\.json is not JSON"):
        list_samples(tmp_path)
