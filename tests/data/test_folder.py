"""Folders of captioned images: three layouts in, one sorted list out."""

import csv
import json
import os
import re
import shlex

import pytest
from PIL import Image

from fewstep.errors import FewstepError
from tests.data.items import Item, read_data, read_items, reference_files


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
        ('{"file_name": "a.png", "text": ["an a", 7]}', r"metadata\.jsonl line 2 has no caption"),
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
    with pytest.raises(FewstepError, match=r"^no images in .*\n\nhint: images with captions are read from a folder"):
        read_items(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text\n")
    with pytest.raises(FewstepError, match=r"^no images in "):
        read_items(tmp_path)
    with pytest.raises(
        FewstepError,
        match=r"^data not found: .*absent\n\nhint: check the path; images with captions are read from a folder",
    ):
        read_items(tmp_path / "absent")


def test_a_table_beside_others_names_files_relative_to_itself(tmp_path):
    pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "some.jsonl").write_text(json.dumps({"file_name": "b.png", "text": "a b"}))
    (tmp_path / "others.csv").write_text("file_name,text\na.png,an a\n")
    assert read_items(tmp_path / "some.jsonl") == [Item(tmp_path / "b.png", "a b")]
    assert read_items(tmp_path / "others.csv") == [Item(tmp_path / "a.png", "an a")]


def test_a_file_that_is_no_table_is_refused(tmp_path):
    pictures(tmp_path, "a.png")
    with pytest.raises(FewstepError, match=r"a\.png is none of what fewstep reads: folders, \.jsonl, \.csv and "):
        read_items(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("name", "unpack"),
    [
        ("x.7z", "mkdir x && 7z x -ox {}"),
        ("my x-000.tar.gz", "mkdir 'my x-000' && tar -xf {} -C 'my x-000'"),
        ("x.TGZ", "mkdir x && tar -xf {} -C x"),
        ("x.rar", "mkdir x && unrar x {} x/"),
    ],
)
def test_archives_are_named_with_how_to_unpack_them(tmp_path, name, unpack):
    path = tmp_path / name
    path.write_bytes(b"")
    with pytest.raises(FewstepError) as caught:
        read_items(path)
    assert caught.value.message.startswith(f"{path} is an archive of a kind in which no image can be read alone: ")
    assert caught.value.hint == f"unpack it and give the folder: {unpack.format(shlex.quote(str(path)))}"


# Captions


def test_a_byte_order_mark_is_no_part_of_a_caption(tmp_path):
    pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "a.txt").write_text("größer", encoding="utf-8-sig")
    (tmp_path / "b.caption").write_bytes(b"\xef\xbb\xbf")
    assert [item.caption for item in read_items(tmp_path)] == ["größer", ""]
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "größer"}', encoding="utf-8-sig")
    assert read_items(tmp_path) == [Item(tmp_path / "a.png", "größer")]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("name", ["a.txt", "a.caption", "metadata.csv"])
def test_captions_in_other_encodings_are_refused_by_name(tmp_path, encoding, name):
    pictures(tmp_path, "a.png")
    (tmp_path / name).write_bytes("file_name,text\na.png,größer\n".encode(encoding))
    with pytest.raises(FewstepError, match=rf"^.*{re.escape(name)} is not UTF-8 text \(.*\)\n\nhint: save it as UTF-8"):
        read_items(tmp_path)


def test_half_characters_are_no_caption(tmp_path):
    pictures(tmp_path, "a.png")
    rows(tmp_path, '{"file_name": "a.png", "text": "a \\ud83e fox"}')
    with pytest.raises(FewstepError, match=r"line 1 has no caption"):
        read_items(tmp_path)


def test_a_caption_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    pictures(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("an a")
    monkeypatch.setattr("pathlib.Path.read_bytes", denied)
    with pytest.raises(FewstepError, match=r"^cannot read .*a\.txt \(Permission denied\)"):
        read_items(tmp_path)
    monkeypatch.setattr("os.scandir", denied)
    with pytest.raises(FewstepError, match=r"^cannot read .* \(Permission denied\)"):
        read_items(tmp_path)


# What is left out


def captioned(folder, *names):
    pictures(folder, *names)
    for name in names:
        (folder / name).with_suffix(".txt").write_text(name)


def found(folder):
    """The images' names, and the notes."""
    data = read_data(folder)
    return [item.path.relative_to(folder).as_posix() for item in data.items], list(data.notes)


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    source = tmp_path / ".cache" / "data"  # which may itself lie in a hidden folder
    captioned(source, "a.png", "sub/b.png")
    pictures(source, "._a.png", ".b.png", ".ipynb_checkpoints/a-checkpoint.png", "sub/.git/c.png", "__MACOSX/._a.png")
    (source / ".#a.png").symlink_to("user@host.1234")
    assert found(source) == (["a.png", "sub/b.png"], [])
    rows(source, '{"file_name": "sub/b.png", "text": "a b"}', '{"file_name": ".b.png", "text": "named"}')
    assert found(source) == (
        [".b.png", "sub/b.png"],
        [f"left out of {source}: 1 image that metadata.jsonl does not name"],
    )


def test_what_is_left_out_is_counted(tmp_path):
    captioned(tmp_path, "a.png")
    for name in ("b.gif", "c.GIF", "sub/d.tiff", "e.avif", "shard.tar", "notes.md", "f.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    pictures(tmp_path, "folder.png/inside.png")
    said = "1 .avif file, 2 .gif files, 1 .tar file, 1 .tiff file, 1 folder named like an image"
    assert found(tmp_path) == (["a.png"], [f"left out of {tmp_path}: {said}"])
    assert reference_files(tmp_path) == ([tmp_path / "a.png"], (f"left out of {tmp_path}: {said}",))
    (tmp_path / "a.png").unlink()
    with pytest.raises(FewstepError, match=rf"^no images in {tmp_path} \(left out: {said}\)\n"):
        read_items(tmp_path)


def test_images_and_tables_beside_a_table_are_counted(tmp_path):
    pictures(tmp_path, "a.png", "b.png", "sub/c.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\n./sub/../a.png,an a\n")
    said = [f"left out of {tmp_path}: 2 images that metadata.csv does not name"]
    assert (len(read_data(tmp_path).items), list(read_data(tmp_path).notes)) == (1, said)
    assert reference_files(tmp_path)[1] == tuple(said)
    rows(tmp_path, *(json.dumps({"file_name": name, "text": name}) for name in ("a.png", "b.png", "sub/c.png")))
    assert read_data(tmp_path).notes == (f"left out of {tmp_path}: 1 table beside metadata.jsonl",)
    assert read_data(tmp_path / "metadata.csv").notes == ()  # asked for by name


# Links


def test_links_to_folders_are_followed_once(tmp_path):
    captioned(tmp_path / "data", "real/a.png")
    captioned(tmp_path / "disk", "b.png")
    (tmp_path / "data" / "b").symlink_to(tmp_path / "disk")
    assert found(tmp_path / "data") == (["b/b.png", "real/a.png"], [])
    (tmp_path / "data" / "real" / "up").symlink_to("..")
    (tmp_path / "data" / "again").symlink_to("real")  # comes before it in the alphabet
    (tmp_path / "disk" / "self").symlink_to(".")
    (tmp_path / "data" / "nowhere").symlink_to("absent")
    said = f"left out of {tmp_path / 'data'}: 3 links to a folder that is read already"
    assert found(tmp_path / "data") == (["b/b.png", "real/a.png"], [said])


def test_many_links_among_folders_are_not_walked_in_every_order(tmp_path):
    captioned(tmp_path, "0/a.png")
    for i in range(12):
        (tmp_path / f"{i}").mkdir(exist_ok=True)
        for j in range(12):
            (tmp_path / f"{i}" / f"to{j}").symlink_to(f"../{j}")
    assert found(tmp_path)[0] == ["0/a.png"]


@pytest.mark.parametrize("target", ["absent.png", "b.png", "n" * 300], ids=["dangling", "looping", "too long"])
def test_links_that_lead_nowhere_are_named(tmp_path, target):
    captioned(tmp_path, "a.png")
    (tmp_path / "b.png").symlink_to(target)
    for read in (read_items, reference_files):
        with pytest.raises(
            FewstepError, match=r"b\.png is no file, or a link that leads nowhere\n\nhint: repair it"
        ) as caught:
            read(tmp_path)
        assert "\n" not in caught.value.message
    (tmp_path / "metadata.jsonl").symlink_to("absent.jsonl")
    with pytest.raises(FewstepError, match=r"metadata\.jsonl is no file, or a link that leads nowhere"):
        read_items(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(FewstepError, match=r"a\.png is no file"):
        read_items(tmp_path)


def test_names_that_are_too_long(tmp_path):
    longest = "n" * 251 + ".png"
    captioned(tmp_path, longest)  # whose .caption would be longer than a name may be
    assert found(tmp_path) == ([longest], [])
    (tmp_path / longest).with_suffix(".txt").unlink()
    with pytest.raises(FewstepError, match=r"^no caption for "):
        read_items(tmp_path)
    rows(tmp_path, json.dumps({"file_name": "n" * 300 + ".png", "text": "an n"}))
    with pytest.raises(FewstepError, match=r"^.*metadata\.jsonl line 1 names n{300}\.png, which is not in "):
        read_items(tmp_path)
    with pytest.raises(FewstepError, match=r"^data not found: .*n{300}"):
        read_items(tmp_path / ("n" * 300))


# Tables


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_tables_of_other_delimiters_are_recognised(tmp_path, mark):
    pictures(tmp_path, "a.png", "b.png")
    caption = f'a "b"{mark} two\nlines, 0,5'
    with (tmp_path / "metadata.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=mark).writerows(
            [["text", "file_name", "x"], [caption, "b.png", 1], ["an a", "a.png", 2]]
        )
    assert read_items(tmp_path) == [Item(tmp_path / "a.png", "an a"), Item(tmp_path / "b.png", caption)]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "file_name,text\na.png,a red fox, in snow\n",
            r"line 2 has more cells than the header\n\nhint: .*contains , in",
        ),
        ("file_name;text\na.png;red; fox\n", r"line 2 has more cells than the header\n\nhint: .*contains ; in quotes"),
        ('file_name,text\na.png,"an a\nb.png,a b\n', r"line 2 is not CSV \(unexpected end of data\)"),
        ("image;text\na.png;x\n", r"line 2 has no file_name"),
        ("file_name,text\na.png,  \n", r"line 2 has no caption"),
    ],
)
def test_text_is_not_cut_at_a_delimiter(tmp_path, table, message):
    pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "metadata.csv").write_text(table)
    with pytest.raises(FewstepError, match=message):
        read_items(tmp_path)


def test_empty_cells_at_the_end_are_none(tmp_path):
    pictures(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,an a,,\n,\n")
    with pytest.raises(FewstepError, match="line 3 has no file_name"):
        read_items(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,an a,,\n\n")
    assert read_items(tmp_path) == [Item(tmp_path / "a.png", "an a")]


@pytest.mark.parametrize("line", ["[" * 100_000, '{"a":' * 100_000, '{"text": ' + "9" * 6000 + "}"])
def test_json_that_takes_too_much_is_named(tmp_path, line):
    rows(tmp_path, line)
    with pytest.raises(FewstepError, match=r"^.*metadata\.jsonl line 1 is not JSON \([^\n]{1,80}\)\n"):
        read_items(tmp_path)
