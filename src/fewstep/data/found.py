"""What is in a folder: the images that are read, and how many files of each other kind."""

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from fewstep.errors import FewstepError
from fewstep.io import is_file, is_folder

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
ARCHIVES = {".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar"}
PICTURES = {".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".psd", ".svg", ".tga", ".exr"}
OTHERS = PICTURES | ARCHIVES | {".parquet"}  # files that a person may expect to be read, and that are not
NAMED_LIKE_IMAGE = "folder{s} named like an image"
SECOND_LINK = "link{s} to a folder that is read already"


class Found(NamedTuple):
    """What was found in a folder."""

    images: list[Path]  # sorted
    broken: list[Path]  # sorted; named like an image, but not a file: links that lead nowhere or to themselves, devices
    left_out: Counter[str]  # how many there are of each kind, for `counts_in_words`


def find_images(folder: Path) -> Found:
    """What is in a folder and in the folders inside it. Hidden files and folders are passed over.

    Links to folders are followed last, and each folder is read once, so links in a circle end.
    Raises FewstepError for a folder that cannot be read.
    """
    found, folders, links = Found([], [], Counter()), [folder], list[Path]()
    visited = set[tuple[int, int]]()
    while folders or links:
        current = folders.pop() if folders else links.pop()
        identity, entries = _entries(current)
        if identity in visited:
            found.left_out[SECOND_LINK] += 1
            continue
        visited.add(identity)
        for entry in entries:
            path, linked = current / entry.name, entry.is_symlink()  # only a link's kind costs a call to the system
            suffix = path.suffix.lower()
            if is_folder(path) if linked else entry.is_dir():
                if suffix in SUFFIXES:
                    found.left_out[NAMED_LIKE_IMAGE] += 1
                else:
                    (links if linked else folders).append(path)
            elif suffix in SUFFIXES:
                readable = is_file(path) if linked else entry.is_file()
                (found.images if readable else found.broken).append(path)
            elif suffix in OTHERS:
                found.left_out[f"{suffix} file{{s}}"] += 1
    found.images.sort()
    found.broken.sort()
    return found


def _entries(folder: Path) -> tuple[tuple[int, int], list[os.DirEntry[str]]]:
    """The folder's identity, which no other folder has, and its entries that are not hidden, sorted by name."""
    try:
        status = folder.stat()
        with os.scandir(folder) as entries:
            visible = sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)
    except OSError as error:
        raise FewstepError(
            f"cannot read {folder} ({error.strerror or error})", "make it readable, or remove it"
        ) from None
    return (status.st_dev, status.st_ino), visible


def counts_in_words(left_out: Counter[str]) -> str:
    """How many there are of each kind, such as "2 .gif files, 1 folder named like an image"; "" if there are none."""
    return ", ".join(f"{count} {what.format(s='' if count == 1 else 's')}" for what, count in sorted(left_out.items()))
