"""What lies in a folder of images: those that are read, and how many of what else there is."""

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from fewstep.errors import FewstepError
from fewstep.io import is_file, is_folder

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
ARCHIVES = {".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar"}
PICTURES = {".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".psd", ".svg", ".tga", ".exr"}
OTHERS = PICTURES | ARCHIVES | {".parquet"}  # what somebody may take for images that are read
NAMED = "folder{s} named like an image"
AGAIN = "link{s} to a folder that is read already"


class Found(NamedTuple):
    """A folder's images and the rest."""

    images: list[Path]  # sorted
    broken: list[Path]  # what has an image's name and is no file: links that lead nowhere or to themselves, devices
    left_out: Counter[str]  # how many of what, as `counted` spells it


def find_images(folder: Path) -> Found:
    """What is in a folder and its folders, hidden ones passed over.

    Links to folders are followed after all else, and each folder is read once, so that no link leads round for ever.
    Raises FewstepError for a folder that cannot be read.
    """
    found, folders, links = Found([], [], Counter()), [folder], list[Path]()
    seen = set[tuple[int, int]]()
    while folders or links:
        here = folders.pop() if folders else links.pop()
        identity, entries = _listed(here)
        if identity in seen:
            found.left_out[AGAIN] += 1
            continue
        seen.add(identity)
        for entry in entries:
            path, linked = here / entry.name, entry.is_symlink()  # what is no link tells its kind without being asked
            suffix = path.suffix.lower()
            if is_folder(path) if linked else entry.is_dir():
                if suffix in SUFFIXES:
                    found.left_out[NAMED] += 1
                else:
                    (links if linked else folders).append(path)
            elif suffix in SUFFIXES:
                whole = is_file(path) if linked else entry.is_file()
                (found.images if whole else found.broken).append(path)
            elif suffix in OTHERS:
                found.left_out[f"{suffix} file{{s}}"] += 1
    found.images.sort()
    found.broken.sort()
    return found


def _listed(folder: Path) -> tuple[tuple[int, int], list[os.DirEntry[str]]]:
    """What tells this folder from every other, and what is in it and not hidden, sorted."""
    try:
        status = folder.stat()
        with os.scandir(folder) as entries:
            shown = sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)
    except OSError as error:
        raise FewstepError(
            f"cannot read {folder} ({error.strerror or error})", "make it readable, or take it out"
        ) from None
    return (status.st_dev, status.st_ino), shown


def counted(left_out: Counter[str]) -> str:
    """How many of what, such as "2 .gif files, 1 folder named like an image"."""
    return ", ".join(f"{count} {what.format(s='' if count == 1 else 's')}" for what, count in sorted(left_out.items()))
