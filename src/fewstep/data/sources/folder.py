"""Folders of captioned images: name.png with its caption in name.txt, or images that a table in the folder lists."""

import os
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from fewstep.data.captions import JSON_SUFFIX, TEXT_SUFFIXES, captions_in, json_object
from fewstep.data.found import Found, counts_in_words, find_images
from fewstep.data.sources.source import Broken, FileSample, SampleList, Source
from fewstep.data.sources.table import sorted_by_path, table_samples
from fewstep.data.tables import TABLES, Cells, cells, read_text
from fewstep.errors import FewstepError
from fewstep.io import is_file, is_folder

LAYOUT = "a folder of name.png and name.txt"


def takes(given: str) -> bool:
    """Whether this is the path of a folder."""
    return is_folder(Path(given))


def open_source(given: str, captioned: bool, columns: Collection[str]) -> Source:
    """The folder's images, sorted by path.

    The images of a table have captions, whether these were asked for or not. Of other images captions are read only if
    they were asked for.
    """
    folder = Path(given)
    found, table = find_images(folder), _table_in(folder)
    if table is not None:
        samples = sorted_by_path(table_samples(table, columns))
        left_out = found.left_out + _unlisted(table, samples, found)
        return SampleList(samples, counts_in_words(left_out))
    broken = [Broken(str(path), _no_file(path, "remove it from the folder")) for path in found.broken]
    files = [_sample(path, captioned, columns) for path in found.images]
    return SampleList([*broken, *files], counts_in_words(found.left_out))


def _no_file(path: Path, otherwise: str = "remove it") -> FewstepError:
    return FewstepError(f"{path} is no file, or a link that leads nowhere", f"repair it, or {otherwise}")


def _table_in(folder: Path) -> Path | None:
    """The table that lists the folder's images, if there is one."""
    paths = [path for suffix in TABLES if os.path.lexists(path := folder / f"metadata{suffix}")]
    if paths and not is_file(paths[0]):
        raise _no_file(paths[0])
    return paths[0] if paths else None


def _unlisted(table: Path, samples: Sequence[FileSample | Broken], found: Found) -> Counter[str]:
    """How many images of the folder the table does not name, and how many other tables there are."""
    listed = {os.path.normpath(sample.key) for sample in samples}
    images = sum(os.path.normpath(path) not in listed for path in found.images)
    others = sum(is_file(table.with_suffix(suffix)) for suffix in TABLES) - 1
    return Counter({f"image{{s}} that {table.name} does not name": images, f"table{{s}} beside {table.name}": others})


def _sample(image: Path, captioned: bool, columns: Collection[str]) -> FileSample | Broken:
    """The image with what stands in the files beside it."""
    try:
        facts = _json_of(image) if columns else {}
        return FileSample(image, _captions_of(image) if captioned else (), columns=cells(facts, columns))
    except FewstepError as error:
        return Broken(str(image), error)


def _captions_of(image: Path) -> tuple[str, ...]:
    """The caption in the text file beside an image, or the captions in the JSON file beside it."""
    for suffix in TEXT_SUFFIXES:
        if is_file(image.with_suffix(suffix)):
            return (read_text(image.with_suffix(suffix)).strip(),)
    captions = captions_in(_json_of(image))
    if not captions:
        raise FewstepError(f"no caption for {image}", f"write it to {image.with_suffix('.txt').name} beside the image")
    return captions


def _json_of(image: Path) -> Cells:
    """What the JSON file beside an image says; nothing if there is none."""
    path = image.with_suffix(JSON_SUFFIX)
    return json_object(read_text(path), str(path)) if is_file(path) else {}
