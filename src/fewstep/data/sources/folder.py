"""Folders of captioned images: name.png with its caption in name.txt, or images that a table in the folder lists."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fewstep.data.found import Found, counts_in_words, find_images
from fewstep.data.sources.source import FileSample, SampleList, Source
from fewstep.data.sources.table import table_samples
from fewstep.data.tables import TABLES, read_text
from fewstep.errors import FewstepError
from fewstep.io import is_file, is_folder

LAYOUT = "a folder of name.png and name.txt"


def takes(given: str) -> bool:
    """Whether this is the path of a folder."""
    return is_folder(Path(given))


def open_source(given: str, captioned: bool) -> Source:
    """The folder's images, sorted by path.

    The images of a table have captions, whether these were asked for or not. Of other images captions are read only if
    they were asked for. Raises FewstepError naming what is broken or has no caption.
    """
    folder = Path(given)
    found, table = find_images(folder), _table_in(folder)
    if table is not None:
        samples = table_samples(table)
        left_out = found.left_out + _unlisted(table, samples, found)
        return SampleList(sorted(samples), counts_in_words(left_out))
    if found.broken:
        raise FewstepError(
            f"{found.broken[0]} is no file, or a link that leads nowhere", "repair it, or remove it from the folder"
        )
    files = [FileSample(path, (_caption_of(path),) if captioned else ()) for path in found.images]
    return SampleList(files, counts_in_words(found.left_out))


def _table_in(folder: Path) -> Path | None:
    """The table that lists the folder's images, if there is one."""
    paths = [path for suffix in TABLES if os.path.lexists(path := folder / f"metadata{suffix}")]
    if paths and not is_file(paths[0]):
        raise FewstepError(f"{paths[0]} is no file, or a link that leads nowhere", "repair it, or remove it")
    return paths[0] if paths else None


def _unlisted(table: Path, samples: Sequence[FileSample], found: Found) -> Counter[str]:
    """How many images of the folder the table does not name, and how many other tables there are."""
    listed = {os.path.normpath(sample.path) for sample in samples}
    images = sum(os.path.normpath(path) not in listed for path in found.images)
    others = sum(is_file(table.with_suffix(suffix)) for suffix in TABLES) - 1
    return Counter({f"image{{s}} that {table.name} does not name": images, f"table{{s}} beside {table.name}": others})


def _caption_of(image: Path) -> str:
    """The caption in the text file beside an image."""
    for suffix in (".txt", ".caption"):
        if is_file(image.with_suffix(suffix)):
            return read_text(image.with_suffix(suffix)).strip()
    raise FewstepError(f"no caption for {image}", f"write it to {image.with_suffix('.txt').name} beside the image")
