"""Hostile data of every kind, in every container: read right, or named in one line and left out by --skip-broken."""

import io
import json
import struct
import zlib

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from fewstep.data.sources import list_samples
from fewstep.data.sources.filters import Filters
from fewstep.errors import FewstepError
from fewstep.images import opened
from tests.data.kinds import PICTURES, errors, images, listed, pack, parquet, tar, zipped

GOOD = PICTURES[0].png


def saved(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bomb():
    """A PNG of 40,000 x 40,000 pixels in a few bytes."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(99))), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def exif(orientation):
    found = Image.Exif()
    found[0x0112] = orientation
    return found


RED = Image.new("RGB", (6, 4), "red")
CLEAR = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
BROKEN = {
    "empty": b"",
    "text": b"no image",
    "cut.png": GOOD[: len(GOOD) // 2],
    "cut.jpg": saved(Image.effect_noise((64, 64), 50), "JPEG")[:900],
    "bomb": bomb(),
    "web page": b"<!DOCTYPE html><html>not found</html>",
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "32 bits": saved(Image.fromarray(np.full((2, 2), 70_000, np.int32)), "TIFF"),
}
RIGHT = {  # file: what its first pixel is seen as, on white, and its size
    "turned": (saved(RED, "JPEG", exif=exif(6), quality=100, subsampling=0), (254, 0, 0), (4, 6)),
    "wrong orientation": (saved(RED, exif=exif(77)), (255, 0, 0), (6, 4)),
    "16 bits": (saved(Image.fromarray(np.full((4, 6), 65535, np.uint16))), (255, 255, 255), (6, 4)),
    "CMYK": (saved(Image.new("CMYK", (6, 4), (0, 255, 255, 0)), "JPEG", quality=100), (254, 0, 0), (6, 4)),
    "animated": (saved(RED, "GIF", save_all=True, append_images=[Image.new("RGB", (6, 4))]), (255, 0, 0), (6, 4)),
    "transparent": (saved(CLEAR), (255, 255, 255), (4, 4)),
    "palette": (saved(CLEAR.convert("P"), transparency=CLEAR.convert("P").getpixel((0, 0))), (255, 255, 255), (4, 4)),
    "grey and alpha": (saved(Image.new("LA", (4, 4), (0, 0))), (255, 255, 255), (4, 4)),
}


def in_folder(place, name, content):
    images(place, PICTURES[:2])
    (place / "x.png").write_bytes(content)
    for stem in ("a", "b", "x"):
        (place / f"{stem}.txt").write_text(stem)
    return place


def in_tar(place, name, content):
    return pack(place / "x.tar", [("a.png", GOOD), ("a.txt", b"a"), ("x.png", content), ("x.txt", b"x")])


def in_zip(place, name, content):
    return pack(place / "x.zip", [("a.png", GOOD), ("a.txt", b"a"), ("x.png", content), ("x.txt", b"x")])


def in_parquet(place, name, content):
    table = pyarrow.table({"image": [GOOD, content], "text": ["a", "x"]})
    pyarrow.parquet.write_table(table, place / "x.parquet")
    return place / "x.parquet"


containers = pytest.mark.parametrize("container", [in_folder, in_tar, in_zip, in_parquet], ids=lambda f: f.__name__)


@containers
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_is_named_or_left_out(tmp_path, container, name):
    given = container(tmp_path, name, BROKEN[name])
    [bad] = [sample for sample in list_samples(given).samples if sample.open() == BROKEN[name]]
    with pytest.raises(FewstepError) as caught:
        opened(bad.open(), bad.key)
    assert bad.key in caught.value.message
    assert "\n" not in caught.value.message
    listing = list_samples(given, filters=Filters(skip_broken=True))
    assert [one.key for one in listing.broken] == [bad.key]
    assert str(listing.broken[0].error.message) == caught.value.message
    assert bad.key not in [sample.key for sample in listing.samples]
    assert listing.notes == (f"left out of {given}: 1 broken one",)


@containers
@pytest.mark.parametrize("name", RIGHT)
def test_an_unusual_image_is_read_right(tmp_path, container, name):
    content, colour, size = RIGHT[name]
    listing = list_samples(container(tmp_path, name, content), filters=Filters(skip_broken=True))
    [sample] = [sample for sample in listing.samples if sample.open() == content]
    assert listing.broken == []
    image = opened(sample.open(), sample.key)
    on_white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    assert image.size == size
    assert np.abs(np.subtract(on_white.getpixel((0, 0)), colour)).max() <= 2


CAPTIONS = {  # in a file: what is read, or what the error says
    "mark": ("größer".encode("utf-8-sig"), "größer"),
    "latin": ("größer".encode("latin-1"), None),
    "utf-16": ("größer".encode("utf-16"), None),
    "empty": (b"", ""),
    "long": (b"word " * 5000, ("word " * 5000).strip()),
    "control": (b"a\x1b[2Jb", "a\x1b[2Jb"),
}


@pytest.mark.parametrize("container", ["folder", "x.tar", "x.zip"])
@pytest.mark.parametrize("name", CAPTIONS)
def test_captions_in_files(tmp_path, container, name):
    content, text = CAPTIONS[name]
    entries = [("a.png", GOOD), ("a.txt", content)]
    if container == "folder":
        given = tmp_path
        for file, data in entries:
            (tmp_path / file).write_bytes(data)
    else:
        given = pack(tmp_path / container, entries)
    if text is None:
        with pytest.raises(FewstepError, match=r"a\.txt is not UTF-8 text \(") as caught:
            list_samples(given)
        with pytest.raises(FewstepError, match=r"^no images in .* \(left out: 1 broken one\)"):
            list_samples(given, filters=Filters(skip_broken=True))
        assert errors(given) == {f"{given}/a.png": caught.value.message}
    else:
        assert listed(given) == [(GOOD, (text,))]


def test_rows_that_are_broken_are_left_out_one_by_one(tmp_path):
    images(tmp_path, PICTURES[:2])
    rows = ['{"file_name": "a.png", "text": "an a"}', '{"file', "[]", '{"file_name": "c.png", "text": "c"}',
            '{"file_name": "b.png"}', '{"file_name": "b.png", "text": "a b"}']  # fmt: skip
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    listing = list_samples(tmp_path, filters=Filters(skip_broken=True))
    assert [sample.captions for sample in listing.samples] == [("an a",), ("a b",)]
    assert [one.key.rpartition(" ")[2] for one in listing.broken] == ["2", "3", "4", "5"]
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,an a\na.png,an, a\nb.png,a b\n")
    listing = list_samples(tmp_path, filters=Filters(skip_broken=True))
    assert [sample.captions for sample in listing.samples] == [("an a",), ("a b",)]
    assert listing.notes == (f"left out of {tmp_path}: 1 broken one",)


# Shards


@pytest.mark.parametrize("name", ["x.tar", "x.zip"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_keys_that_are_there_twice(tmp_path, name):
    path = pack(tmp_path / name, [("a.png", GOOD), ("a.txt", b"1"), ("a.png", PICTURES[1].png), ("a.txt", b"2")])
    assert errors(path) == {
        f"{path}/a.png": f"{path}/a.png is there twice",
        f"{path}/a.txt": f"{path}/a.txt is there twice",
    }
    assert listed(path, filters=Filters(skip_broken=True)) == [(GOOD, ("1",))]


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_a_shard_that_was_cut(tmp_path, share):
    path = tar(tmp_path, PICTURES)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content.rstrip(b"\0")) * share)])
    with pytest.raises(FewstepError, match=r"^.*x\.tar was cut, or is damaged\n\nhint: get the file again$"):
        list_samples(path)
    listing = list_samples(path, filters=Filters(skip_broken=True))
    assert listing.broken[0].key == str(path)
    assert [sample.open() for sample in listing.samples] == [p.png for p in PICTURES[: len(listing.samples)]]
    assert len(listing.samples) >= 1


def test_a_shard_with_a_damaged_header(tmp_path):
    path = tar(tmp_path, PICTURES)
    content = bytearray(path.read_bytes())
    second = content.index(b"sub/c.png")
    content[second : second + 4] = b"XXXX"
    path.write_bytes(content)
    assert errors(path)[str(path)] == f"{path} was cut, or is damaged"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.tar", b"", r"x\.tar is no \.tar \(empty file\)"),
        ("x.tar", b"no tar" * 200, r"x\.tar is no \.tar \("),
        ("x.zip", b"", r"x\.zip is no whole \.zip \(File is not a zip file\)"),
        ("x.parquet", b"PAR1", r"x\.parquet is no whole Parquet table \("),
        ("x.parquet", b"", r"x\.parquet is no whole Parquet table \("),
    ],
)
def test_what_is_no_archive_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FewstepError, match=message) as caught:
        list_samples(tmp_path / name)
    assert "\n" not in caught.value.message


def test_a_shard_among_others_is_left_out(tmp_path):
    pack(tmp_path / "0.tar", [("a.png", GOOD), ("a.txt", b"1")])
    (tmp_path / "1.tar").write_bytes(b"")
    pack(tmp_path / "2.tar", [("a.png", GOOD), ("a.txt", b"2")])
    listing = list_samples(f"{tmp_path}/*.tar", filters=Filters(skip_broken=True))
    assert [sample.captions for sample in listing.samples] == [("1",), ("2",)]
    assert [one.key for one in listing.broken] == [str(tmp_path / "1.tar")]


def test_names_lead_nowhere_and_links_are_not_followed(tmp_path):
    """Nothing is written, and no file outside the archive is read."""
    import tarfile

    (tmp_path / "secret.txt").write_text("secret")
    path = pack(tmp_path / "in" / "x.tar", [("../a.png", GOOD), ("../a.txt", b"1"), ("/b.png", GOOD)])
    with tarfile.open(path, "a") as archive:
        for name, kind in (("b.txt", tarfile.SYMTYPE), ("c.png", tarfile.LNKTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, str(tmp_path / "secret.txt")
            archive.addfile(link)
    listing = list_samples(path, filters=Filters(skip_broken=True))
    assert [sample.captions for sample in listing.samples] == [("1",)]
    assert [one.key for one in listing.broken] == [f"{path}//b.png"]
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["secret.txt", "x.tar"]


def test_a_zip_bomb_is_refused_by_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr("fewstep.data.archives.LARGEST_BYTES", 2**20)
    path = pack(tmp_path / "x.zip", [("a.png", GOOD), ("a.txt", b"1"), ("b.png", bytes(2**21)), ("b.txt", b"2")])
    assert path.stat().st_size < 2**14
    listing = list_samples(path, filters=Filters(skip_broken=True))
    assert len(listing.samples) == 1
    assert str(listing.broken[0].error.message) == f"{path}/b.png has 2 MiB"


def test_a_zip_with_a_damaged_file(tmp_path):
    path = zipped(tmp_path, PICTURES)
    content = bytearray(path.read_bytes())
    content[content.index(b"a.png") + 20] ^= 0xFF
    path.write_bytes(content)
    broken = list_samples(path, filters=Filters(skip_broken=True)).broken
    assert [one.key for one in broken] == [f"{path}/a.png"]
    assert str(broken[0].error.message).startswith(f"{path}/a.png cannot be read (")


# Tables


@pytest.mark.parametrize(
    ("columns", "message", "names"),
    [
        ({"picture": ["a"], "text": ["a"]}, "has no column of images", "picture, text"),
        ({"image": [GOOD], "words": ["a"]}, "has no column for captions, such as text", "image, words"),
        ({}, "has no column of images", "none"),
    ],
)
def test_a_parquet_table_without_the_column(tmp_path, columns, message, names):
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    with pytest.raises(FewstepError, match=message) as caught:
        list_samples(tmp_path / "x.parquet")
    assert caught.value.hint == f"its columns are {names}: rename one"


def test_rows_of_parquet_without_an_image_or_a_caption(tmp_path):
    table = pyarrow.table({"image": [GOOD, None, GOOD], "text": ["a", "b", None]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    listing = list_samples(tmp_path / "x.parquet", filters=Filters(skip_broken=True))
    assert [str(one.error.message) for one in listing.broken] == [
        f"no image in {tmp_path / 'x.parquet'} row 2",
        f"{tmp_path / 'x.parquet'} row 3 has no caption",
    ]
    assert len(listing.samples) == 1


def test_a_parquet_table_that_was_cut(tmp_path):
    path = parquet(tmp_path, PICTURES)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FewstepError, match=r"x\.parquet is no whole Parquet table \("):
        list_samples(path)


def test_skip_broken_lists_what_it_left_out(fewstep, tiny_model_folder, tmp_path):
    given = in_tar(tmp_path, "cut", BROKEN["cut.png"])
    options = {"model": tiny_model_folder, "data": given, "steps": 1, "rank": 1, "batch_size": 1, "size": 16}
    stopped = fewstep("finetune", out=tmp_path / "stopped", **options)
    assert stopped.code == 1
    assert stopped.error.startswith(f"unreadable image: {given}/x.png (")
    done = fewstep("finetune", "--skip-broken", out=tmp_path / "run", **options)
    assert done.code == 0, done.err
    skipped = tmp_path / "run" / "skipped.jsonl"
    assert f"note: left out of {given}: 1 broken one\nnote: what is broken is listed in {skipped}\n" in done.err
    [line] = skipped.read_text().splitlines()
    assert json.loads(line) == {"key": f"{given}/x.png", "reason": stopped.error}
