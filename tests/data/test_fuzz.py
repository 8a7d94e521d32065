"""Folders as people have them, put together at random: each is read whole, or refused in one line with a hint."""

import io
import json
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.errors import FewstepError, is_text
from fewstep.images import image_size, read_image
from tests.data.items import read_data, reference_files

STEMS = [
    "a",
    "B c",
    "größer 狐",
    "e\u0301",
    "new\nline",
    "esc\x1b[2J",
    "._a",
    ".hidden",
    "a.b",
    "n" * 240,
    os.fsdecode(b"\xff"),
]
SUFFIXES = [".png", ".PNG", ".jpg", ".jpeg", ".webp", ".bmp"]
HIDDEN_FOLDERS = [".ipynb_checkpoints", ".git", "sub/.cache"]
WORDS = ["", " a red fox \n", "größer 狐", "\ufeffwith a mark", "a, b; c", 'a "b"', "two\nlines", "x" * 5000]
ENCODINGS = ["utf-8"] * 12 + ["utf-8-sig", "latin-1", "utf-16", "utf-16-le"]


def encoded(array, suffix, orientation=None):
    file, exif = io.BytesIO(), Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    kind = {".jpg": "JPEG", ".jpeg": "JPEG"}.get(suffix.lower(), suffix[1:].upper())
    Image.fromarray(array).save(file, kind, **({} if kind == "BMP" else {"exif": exif}))
    return file.getvalue()


RGB, GREY = np.arange(18, dtype=np.uint8).reshape(2, 3, 3), np.arange(0, 60_000, 10_000, dtype=np.uint16).reshape(2, 3)
CONTENTS = {
    suffix: [encoded(RGB, suffix), encoded(RGB, suffix, 6), encoded(RGB, suffix, 9)]
    + ([encoded(GREY, suffix, 8)] if suffix.lower() == ".png" else [])
    for suffix in SUFFIXES
}
NO_IMAGES = [
    b"",
    b"no picture",
    b"version https://git-lfs.github.com/spec/v1\n",
    b"<!DOCTYPE html>",
    b"\x89PNG\r\n\x1a\n",
]


def an_image(folder, draw):
    """An image and mostly its caption, rarely damaged."""
    suffix = draw.choice(SUFFIXES)
    path = folder / f"{draw.choice(STEMS)}{suffix}"
    data = draw.choice(CONTENTS[suffix])
    if draw.random() < 0.04:
        data = draw.choice([*NO_IMAGES, data[: len(data) // 2], data[:20]])
    path.write_bytes(data)
    if draw.random() < 0.97:
        write(path.with_suffix(draw.choice([".txt", ".txt", ".caption"])), draw.choice(WORDS), draw)


def write(path, words, draw):
    if path.is_symlink():
        path.unlink()
    path.write_bytes(words.encode(draw.choice(ENCODINGS), "replace"))


def a_hidden_one(folder, draw):
    hidden = folder / draw.choice(HIDDEN_FOLDERS)
    hidden.mkdir(parents=True)
    (hidden / "a.png").write_bytes(CONTENTS[".png"][0])


def what_is_not_read(folder, draw):
    (folder / f"x{draw.choice(['.gif', '.TIFF', '.heic', '.tar', '.md', '.json'])}").write_bytes(b"x")


def a_folder_named_like_an_image(folder, draw):
    (folder / "folder.png").mkdir()
    (folder / "folder.png" / "a.png").write_bytes(b"")


def a_link(folder, draw):
    """To a file, a folder, nowhere, itself, round."""
    name = draw.choice(["link.png", "link.txt", "link", "link", "metadata.csv"])
    targets = [".", "..", "sub", name, "absent", "n" * 300, "/dev/null", "a.png"]
    (folder / name).symlink_to(draw.choice(targets[:3] if name == "link" else targets))


def a_pipe(folder, draw):
    os.mkfifo(folder / draw.choice(["pipe", "pipe.md", "pipe.png"]))


def a_table(folder, draw):
    """A table of some of the images, rarely with a row that is wrong."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in SUFFIXES]
    names = [name for name in names if is_text(name) and "\n" not in name][: draw.randint(0, 4)]
    names += [draw.choice(["absent.png", "n" * 300 + ".png", "n\0l.png", "sub", ""])] * (draw.random() < 0.1)
    rows = [{"file_name": name, draw.choice(["text", "caption"]): draw.choice(WORDS[1:])} for name in names]
    if draw.random() < 0.5:
        lines = [json.dumps(row) for row in rows] + ["[" * 9999] * (draw.random() < 0.1)
        write(folder / "metadata.jsonl", "\n".join(lines), draw)
    else:
        mark = draw.choice(",;\t")
        quoted = [[row["file_name"], '"' + str(list(row.values())[1]).replace('"', '""') + '"'] for row in rows]
        write(folder / "metadata.csv", "\n".join(mark.join(row) for row in [["file_name", "text"], *quoted]), draw)


RARE = [a_hidden_one, what_is_not_read, a_folder_named_like_an_image, a_link, a_pipe, a_table]


def random_folder(folder, draw):
    (folder / "sub").mkdir(parents=True)
    for _ in range(draw.randint(1, 6)):
        an_image(draw.choice([folder, folder / "sub"]), draw)
    for kind in draw.sample(RARE, draw.choice([0, 1, 1, 2])):
        kind(draw.choice([folder, folder, folder / "sub"]) if kind is not a_table else folder, draw)
    return folder


def visible_images(folder):
    """Files with an image's name that nothing hides, by the system's own walk, which follows no links."""
    for top, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and Path(name).suffix not in SUFFIXES]
        for path in (Path(top, name) for name in names if not name.startswith(".")):
            if path.suffix in SUFFIXES and path.is_file() and not path.is_symlink():
                yield path


def look_at(folder, data):
    """Everything that was read can be looked at, and nothing that is plain to see was passed over."""
    for path, caption in data.items:
        assert path.is_file()
        assert caption == caption.strip()
        assert is_text(caption)
        assert "\0" not in caption
        assert read_image(path, 4, 4).shape == (3, 4, 4)
        assert image_size(path) in ((2, 3), (3, 2))
    paths = [path for path, _ in data.items]
    if not any((folder / name).exists() for name in ("metadata.jsonl", "metadata.csv")):
        assert set(paths) >= set(visible_images(folder))
        assert reference_files(folder) == (paths, data.notes)
        assert not [path for path in paths if any(part[0] == "." for part in path.relative_to(folder).parts)]


def read(folder):
    """How reading a folder ended: "read", or the words that refuse it."""
    try:
        look_at(folder, read_data(folder))
    except FewstepError as error:
        refusal = error
    else:
        return "read"
    assert refusal.message.isprintable()
    assert refusal.hint.isprintable()
    assert refusal.hint
    return refusal.message.replace(str(folder), "")


@pytest.mark.parametrize("part", range(4))
def test_any_folder_is_read_or_refused_in_one_line(tmp_path, part):
    ends = []
    for number in range(60):
        folder = random_folder(tmp_path / str(number) / "data", random.Random(60 * part + number))
        began = time.perf_counter()
        ends.append(read(folder))
        assert time.perf_counter() - began < 20
    assert 10 <= ends.count("read") <= 50  # both happen
    assert len(set(ends)) > 10
