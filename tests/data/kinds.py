"""The same captioned images as every kind of source has them, and what a source gives back."""

import csv
import io
import json
import tarfile
import zipfile
from typing import NamedTuple

import pyarrow
import pyarrow.parquet
from PIL import Image

from fewstep.data.sources import Broken, list_samples, open_source
from fewstep.data.sources.filters import EVERYTHING


class Picture(NamedTuple):
    """An image and what is said about it."""

    stem: str
    captions: tuple[str, ...]
    score: float
    size: tuple[int, int] = (12, 10)  # width and height

    @property
    def png(self):
        number = sum(map(ord, self.stem)) % 200
        file = io.BytesIO()
        Image.new("RGB", self.size, (number, 0, 255 - number)).save(file, "PNG")
        return file.getvalue()


PICTURES = (
    Picture("a", ("an a",), 3.0),
    Picture("b", ("a b", "größer 狐"), 5.5, (30, 20)),
    Picture("sub/c", ("two\nlines",), 7.25),
    Picture("sub/d", ("a d",), 9.0, (8, 9)),
)


def files(pictures, json_beside=True):
    """The files of a folder of them: captions in JSON, or the first alone as text."""
    for picture in pictures:
        yield f"{picture.stem}.png", picture.png
        facts = json.dumps({"text": list(picture.captions), "score": picture.score}, ensure_ascii=False)
        yield (
            f"{picture.stem}.{'json' if json_beside else 'txt'}",
            (facts if json_beside else picture.captions[0]).encode(),
        )


def rows(pictures):
    return [
        {"file_name": f"{picture.stem}.png", "text": list(picture.captions), "score": picture.score}
        for picture in pictures
    ]


def folder(place, pictures):
    for name, content in files(pictures):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return place


def images(place, pictures):
    for picture in pictures:
        (place / picture.stem).parent.mkdir(parents=True, exist_ok=True)
        (place / f"{picture.stem}.png").write_bytes(picture.png)
    return place


def jsonl(place, pictures):
    table = images(place, pictures) / "some.jsonl"
    table.write_text("\n".join(json.dumps(row) for row in rows(pictures)))
    return table


def comma(place, pictures):
    """CSV has one caption a row."""
    table = images(place, pictures) / "some.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text", "score"])
        writer.writerows([f"{p.stem}.png", p.captions[0], p.score] for p in pictures)
    return table


def pack(path, entries, **options):
    """A .tar or .zip of these names and contents, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in entries:
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w", **options) as archive:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def tar(place, pictures):
    return pack(place / "x.tar", files(pictures))


def gnu_tar(place, pictures):
    return pack(place / "x.tar", files(pictures), format=tarfile.GNU_FORMAT)


def zipped(place, pictures):
    return pack(place / "x.zip", files(pictures))


def zipped_table(place, pictures):
    table = "\n".join(json.dumps(row) for row in rows(pictures)).encode()
    return pack(
        place / "x.zip",
        [("top/metadata.jsonl", table), *((f"top/{picture.stem}.png", picture.png) for picture in pictures)],
    )


def shards(place, pictures):
    """Two shards, given as a list in braces."""
    half = len(pictures) // 2
    for number, part in enumerate((pictures[:half], pictures[half:])):
        pack(place / f"{number:03}.tar", files(part))
    return f"{place}/{{000..001}}.tar"


def parquet(place, pictures, column="image", plain=False, group=2):
    """Images of {bytes, path}, or of bytes alone."""
    cells = [{"bytes": p.png, "path": None} for p in pictures]
    table = pyarrow.table(
        {
            column: [cell["bytes"] for cell in cells] if plain else cells,
            "captions": [list(p.captions) for p in pictures],
            "score": [p.score for p in pictures],
        }
    )
    place.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, place / "x.parquet", row_group_size=group)
    return place / "x.parquet"


def plain_parquet(place, pictures):
    return parquet(place, pictures, "jpg", plain=True)


def parquet_of_names(place, pictures):
    images(place, pictures)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(pictures)), place / "x.parquet")
    return place / "x.parquet"


KINDS = (
    folder,
    jsonl,
    comma,
    tar,
    gnu_tar,
    zipped,
    zipped_table,
    shards,
    parquet,
    plain_parquet,
    parquet_of_names,
)


def listed(given, captioned=True, filters=EVERYTHING):
    """The samples of a source as (image, captions)."""
    return [(sample.open(), sample.captions) for sample in list_samples(given, captioned, filters).samples]


def expected(pictures, first_caption=False):
    return [(p.png, p.captions[:1] if first_caption else p.captions) for p in pictures]


def errors(given, captioned=True):
    """Key -> message of what is broken in a source."""
    items = list(open_source(given, captioned))
    return {item.key: str(item.error.message) for item in items if isinstance(item, Broken)}
