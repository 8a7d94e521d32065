"""Captioned images: folders of name.png + name.txt, and tables, .jsonl or .csv."""

import os
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from fewstep.data.found import ARCHIVES, Found, counted, find_images
from fewstep.data.tables import FILE_NAME, TABLES, read_text
from fewstep.errors import FewstepError, is_text
from fewstep.events import doing
from fewstep.io import is_file, is_folder

CAPTION_KEYS = ("text", "caption", "prompt")
LAYOUTS = "a folder of name.png and name.txt, or a .jsonl or .csv table with file_name and text"


class Item(NamedTuple):
    """An image and what it shows."""

    path: Path
    caption: str


class Data(NamedTuple):
    """The captioned images of a folder or table."""

    items: list[Item]  # sorted by path
    notes: tuple[str, ...]  # what of the folder is left out, if anything is


def read_items(source: Path) -> list[Item]:
    """The captioned images that `read_data` finds."""
    return read_data(source).items


@doing("listing the images")
def read_data(source: Path) -> Data:
    """The captioned images of a folder or table, and what is left out. Raises FewstepError naming what is missing.

    source: a folder, or a .jsonl or .csv table whose file names are relative to the table's own folder.
    """
    if is_file(source):
        return Data(_some(_from_table(source), source, Counter()), ())
    if not is_folder(source):
        raise FewstepError(f"data not found: {source}", f"--data takes images with captions: {LAYOUTS}")
    found, table = find_images(source), table_in(source)
    if table is None:
        items = [Item(path, _sidecar(path)) for path in whole(found).images]
    else:
        items = _from_table(table)
        found.left_out.update(_beside(table, items, found))
    return Data(_some(items, source, found.left_out), notes_of(source, found.left_out))


def table_in(folder: Path) -> Path | None:
    """The table that a folder's images are listed in, if it has one."""
    paths = [path for suffix in TABLES if os.path.lexists(path := folder / f"metadata{suffix}")]
    if paths and not is_file(paths[0]):
        raise FewstepError(f"{paths[0]} is no file, or a link that leads nowhere", "mend it, or take it out")
    return paths[0] if paths else None


def whole(found: Found) -> Found:
    """What was found, if every image's name is that of a file. Raises FewstepError naming the first that is not."""
    if found.broken:
        raise FewstepError(
            f"{found.broken[0]} is no file, or a link that leads nowhere", "mend it, or take it out of the folder"
        )
    return found


def notes_of(source: Path, left_out: Counter[str]) -> tuple[str, ...]:
    """A line about what of a folder is left out, if anything is."""
    return (f"left out of {source}: {counted(left_out)}",) if left_out else ()


def _some(items: list[Item], source: Path, left_out: Counter[str]) -> list[Item]:
    if items:
        return sorted(items)
    beside = f" (left out: {counted(left_out)})" if left_out else ""
    raise FewstepError(f"no images in {source}{beside}", f"--data takes images with captions: {LAYOUTS}")


def _beside(table: Path, items: list[Item], found: Found) -> Counter[str]:
    """How many images, and other tables, lie beside those that the table names."""
    listed = {os.path.normpath(item.path) for item in items}
    images = sum(os.path.normpath(path) not in listed for path in found.images)
    others = sum(is_file(table.with_suffix(suffix)) for suffix in TABLES) - 1
    return +Counter({f"image{{s}} that {table.name} does not name": images, f"table{{s}} beside {table.name}": others})


def _from_table(path: Path) -> list[Item]:
    suffix = path.suffix.lower()
    if suffix in ARCHIVES:
        folder = shlex.quote(path.name.split(".")[0] or "data")
        unpack = {".zip": "unzip -d {1} {0}", ".7z": "7z x -o{1} {0}", ".rar": "unrar x {0} {1}/"}
        command = unpack.get(suffix, "tar -xf {0} -C {1}").format(shlex.quote(str(path)), folder)
        raise FewstepError(
            f"{path} is an archive, and only folders and tables are read today",
            f"unpack it and give the folder: mkdir {folder} && {command}",
        )
    if suffix not in TABLES:
        raise FewstepError(
            f"{path} is no table of images, and only folders and {' and '.join(TABLES)} tables are read today",
            f"--data takes images with captions: {LAYOUTS}",
        )
    return [_from_row(row, path.parent, f"{path} line {line}") for line, row in TABLES[suffix](path)]


def _from_row(row: Mapping[str, object], folder: Path, where: str) -> Item:
    name = row.get(FILE_NAME)
    if not isinstance(name, str) or not name:
        raise FewstepError(f"{where} has no file_name", "give every row the image's file_name")
    path = folder / name
    if not is_file(path):
        raise FewstepError(
            f"{where} names {name}, which is not in {folder}", "correct the file_name, or remove the row"
        )
    caption = caption_of(row)
    if caption is None:
        raise FewstepError(
            f"{where} has no caption", f"give every row a {', '.join(CAPTION_KEYS[:-1])} or {CAPTION_KEYS[-1]}"
        )
    return Item(path, caption)


def caption_of(row: Mapping[str, object]) -> str | None:
    """What a row says that its image shows, if it says it in words."""
    caption = next((row[key] for key in CAPTION_KEYS if row.get(key)), None)
    return caption.strip() or None if isinstance(caption, str) and is_text(caption) else None


def _sidecar(path: Path) -> str:
    for suffix in (".txt", ".caption"):
        if is_file(path.with_suffix(suffix)):
            return read_text(path.with_suffix(suffix)).strip()
    raise FewstepError(f"no caption for {path}", f"write it to {path.with_suffix('.txt').name} beside the image")
