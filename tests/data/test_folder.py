"""Folders of captioned images: three layouts in, one sorted list out."""

import csv
import json

import pytest
from PIL import Image

from fewstep.data.folder import Item, read_items
from fewstep.errors import FewstepError


def pictures(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(folder / name)


def rows(folder, *rows_):
    (folder / "metadata.jsonl").write_text("".join(row + "\n" for row in rows_), encoding="utf-8")


def test_captions_beside_images_nested_and_sorted(tmp_path):
    pictures(tmp_path, "b.png", "a/z.JPG", "a/a.webp", "c.bmp")
    for name, caption in (("b.txt", " a b \n"), ("a/z.txt", "a z"), ("a/a.caption", "an a"), ("c.txt", "größer 狐")):
        (tmp_path / name).write_text(caption, encoding="utf-8")
    (tmp_path / "notes.md").write_text("not an image")
    assert read_items(tmp_path) == [
        Item(tmp_path / "a" / "a.webp", "an a"),
        Item(tmp_path / "a" / "z.JPG", "a z"),
        Item(tmp_path / "b.png", "a b"),
        Item(tmp_path / "c.bmp", "größer 狐"),
    ]


@pytest.mark.parametrize("key", ["text", "caption", "prompt"])
def test_jsonl(tmp_path, key):
    pictures(tmp_path, "b.png", "sub/a.png", "unlisted.png")
    rows(
        tmp_path,
        json.dumps({"file_name": "sub/a.png", key: "an a"}),
        "",
        json.dumps({key: "a b", "file_name": "b.png"}),
    )
    assert read_items(tmp_path) == [Item(tmp_path / "b.png", "a b"), Item(tmp_path / "sub" / "a.png", "an a")]


def test_jsonl_captions_may_hold_any_character(tmp_path):
    pictures(tmp_path, "a.png")
    caption = "one\u2028two\u0085three"  # line ends to Python's splitlines, not to JSON
    rows(tmp_path, json.dumps({"file_name": "a.png", "text": caption}, ensure_ascii=False))
    assert read_items(tmp_path) == [Item(tmp_path / "a.png", caption)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv(tmp_path, encoding):
    pictures(tmp_path, "a.png", "b.png")
    with (tmp_path / "metadata.csv").open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows([["file_name", "text"], ["b.png", 'a "b", two\nlines é'], ["a.png", "an a"]])
    assert read_items(tmp_path) == [
        Item(tmp_path / "a.png", "an a"),
        Item(tmp_path / "b.png", 'a "b", two\nlines é'),
    ]


def test_jsonl_comes_before_csv_and_sidecars(tmp_path):
    pictures(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("beside")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,from csv\n")
    assert read_items(tmp_path)[0].caption == "from csv"
    rows(tmp_path, '{"file_name": "a.png", "text": "from jsonl"}')
    assert read_items(tmp_path)[0].caption == "from jsonl"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"file_name": "a.png"', r"metadata\.jsonl line 2 is not JSON \("),
        ('["a.png"]', r"metadata\.jsonl line 2 is not a JSON object"),
        ('{"text": "an a"}', r"metadata\.jsonl line 2 has no file_name"),
        ('{"file_name": 7, "text": "an a"}', r"metadata\.jsonl line 2 has no file_name"),
        ('{"file_name": "b.png", "text": "a b"}', r"metadata\.jsonl line 2 names b\.png, which is not in "),
        ('{"file_name": "a.png"}', r"metadata\.jsonl line 2 has no caption"),
        ('{"file_name": "a.png", "text": ""}', r"metadata\.jsonl line 2 has no caption"),
        ('{"file_name": "a.png", "text": ["an a"]}', r"metadata\.jsonl line 2 has no caption"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    pictures(tmp_path, "a.png")
    rows(tmp_path, '{"file_name": "a.png", "text": "an a"}', row)
    with pytest.raises(FewstepError, match=message) as caught:
        read_items(tmp_path)
    assert "\n" not in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,text\na.png,an a\n", r"metadata\.csv line 2 has no file_name"),
        ('file_name,text\na.png,"two\nlines"\nb.png,a b\n', r"metadata\.csv line 4 names b\.png, which is not in "),
        ("file_name,text\na.png\n", r"metadata\.csv line 2 has no caption"),
        ("file_name,text\na.png," + "x" * 200_000, r"metadata\.csv line 2 is not CSV \(field larger"),
    ],
    ids=["no file_name", "missing file", "short row", "huge field"],
)
def test_bad_tables_are_named(tmp_path, table, message):
    pictures(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_text(table)
    with pytest.raises(FewstepError, match=message):
        read_items(tmp_path)


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_other_encodings_are_said(tmp_path, name):
    pictures(tmp_path, "a.png")
    (tmp_path / name).write_bytes("file_name,text\na.png,größer\n".encode("latin-1"))
    with pytest.raises(FewstepError, match=rf"{name} is not UTF-8 text \(.*\)\n\nhint: save it as UTF-8"):
        read_items(tmp_path)


def test_a_missing_caption_names_the_image(tmp_path):
    pictures(tmp_path, "a.png")
    with pytest.raises(FewstepError, match=r"^no caption for .*a\.png\n\nhint: write it to a\.txt beside the image$"):
        read_items(tmp_path)


def test_folders_without_images(tmp_path):
    with pytest.raises(FewstepError, match=r"^no images in .*\n\nhint: --data takes images with captions"):
        read_items(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text\n")
    with pytest.raises(FewstepError, match=r"^no images in "):
        read_items(tmp_path)
    with pytest.raises(FewstepError, match=r"^data not found: .*absent\n\nhint: --data takes images with captions"):
        read_items(tmp_path / "absent")


def test_a_table_beside_others_names_files_relative_to_itself(tmp_path):
    pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "some.jsonl").write_text(json.dumps({"file_name": "b.png", "text": "a b"}))
    (tmp_path / "others.csv").write_text("file_name,text\na.png,an a\n")
    assert read_items(tmp_path / "some.jsonl") == [Item(tmp_path / "b.png", "a b")]
    assert read_items(tmp_path / "others.csv") == [Item(tmp_path / "a.png", "an a")]


def test_a_file_that_is_no_table_is_refused(tmp_path):
    pictures(tmp_path, "a.png")
    with pytest.raises(FewstepError, match=r"a\.png is no table of images"):
        read_items(tmp_path / "a.png")
