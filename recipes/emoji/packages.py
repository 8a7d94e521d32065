"""npm packages: pinned tarballs that are fetched once, verified, and read without unpacking."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fewstep.errors import FewstepError
from fewstep.io import sha256_file

# package -> (version, sha256 of the tarball)
PACKAGES = {
    "emojibase-data": ("17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a"),
    "@lobehub/fluent-emoji-3d": ("1.1.0", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"),
    "@lobehub/fluent-emoji-modern": (
        "1.0.0",
        "080906de394ad8335c24f67e1b33f12a9ac1b6d99324d26ae63cad8d27359769",
    ),
    "@lobehub/fluent-emoji-flat": (
        "1.1.0",
        "8f9113c027c7c20eced0070354715a4093a459b8bef6332b91d45f38c9bdb147",
    ),
    "@iconify-json/noto": ("1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
    "@iconify-json/noto-v1": ("1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37"),
    "asturur-noto-emoji": ("3.0.3", "9ad2feb5088312931514f122d618e633d1b9e4a5a5cf11c702f28ed9996539d2"),
    "@iconify-json/twemoji": ("1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"),
    "emojione": ("2.2.7", "5fe002738e6e276f49ac37783799d2feab99a6131fdedccfa56569d745449ae5"),
    "@iconify-json/fluent-emoji-high-contrast": (
        "1.2.6",
        "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0",
    ),
    "@expo-google-fonts/noto-emoji": (
        "0.4.7",
        "6a25fd5a4da5bb34bbc2d300531bbf32de86afd866e119314d7e358f61a6104d",
    ),
    "@iconify-json/fxemoji": ("1.2.2", "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef"),
}


def tarball_name(package: str, version: str) -> str:
    """The file name `npm pack` gives: '@iconify-json/noto' 1.2.9 -> 'iconify-json-noto-1.2.9.tgz'."""
    return f"{package.lstrip('@').replace('/', '-')}-{version}.tgz"


def fetch(package: str, downloads: Path) -> Path:
    """The verified tarball of `package` in `downloads`. It is fetched with `npm pack` if it is missing."""
    version, sha256 = PACKAGES[package]
    file = downloads / tarball_name(package, version)
    if not file.exists():
        npm_pack(f"{package}@{version}", downloads)
    found = sha256_file(file)
    if found != sha256:
        raise FewstepError(
            f"{file} is not the {package}@{version} of this recipe: sha256 {found}, expected {sha256}",
            "delete the file and run again; if the same file comes again, the registry serves something else",
        )
    return file


def npm_pack(what: str, downloads: Path) -> None:
    """Download one package with npm to another folder, then move it, so that a broken download leaves nothing."""
    hint = f"install npm and check its registry, or put the tarball into {downloads} (see --downloads)"
    partial = downloads / f".npm-{os.getpid()}"
    partial.mkdir(parents=True, exist_ok=True)
    report(f"fetching {what}")
    try:
        command = ["npm", "pack", what, "--silent", "--pack-destination", str(partial)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise FewstepError(f"npm could not fetch {what}: {done.stderr.strip()[-300:]}", hint)
        for file in partial.glob("*.tgz"):
            file.replace(downloads / file.name)
    except FileNotFoundError:
        raise FewstepError(f"npm is needed to fetch {what} and is not installed", hint) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def members(tarball: Path, accept: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of the files in a tarball that `accept` admits, in one pass."""
    with tarfile.open(tarball) as archive:
        for entry in archive:
            if entry.isfile() and accept(entry.name):
                stream = archive.extractfile(entry)
                assert stream is not None
                yield entry.name, stream.read()


def read_json(tarball: Path, *names: str) -> list[Any]:
    """The JSON documents `names` of a tarball, in that order."""
    found = {name: json.loads(data) for name, data in members(tarball, lambda name: name in names)}
    return [found[name] for name in names]


def report(text: str, done: bool = True) -> None:
    """Write a line of progress to stderr. In a terminal, the next line replaces one that is not done."""
    if done or sys.stderr.isatty():
        print(text, file=sys.stderr, end="\n" if done else "\r", flush=True)
