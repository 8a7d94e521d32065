"""The key of pictures in the cache: a hash of the whole request, and of the source code that draws.

Every field of the config is in the key unless it is named here. So a new field is in it from its first day.
"""

import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cache
from inspect import getfile
from pathlib import Path
from typing import Any

import fewstep
from fewstep.assets import CHECKSUMS, FOLDER
from fewstep.configs import Draw
from fewstep.hub import resolved
from fewstep.io import sha256_bytes, sha256_file
from fewstep.session import Plan, Session
from fewstep.session.decoders import NAMES
from fewstep.session.loras import LoraFacts

IRRELEVANT = frozenset({"batch_size", "device", "offload"})  # the surroundings contain the machine
BY_CONTENT = frozenset({"model", "loras"})  # hashed by their content in the session, not by name
PLACES = frozenset({"controlnet", "decoder"})  # fields that may name a folder, or one of the hub
SAFETY = ("safety_checker", "feature_extractor")  # parts of a model's folder that may turn a picture black
ROOT = Path(fewstep.__file__).parent


def key_of(session: Session, plan: Plan, draw: Draw, surroundings: Mapping[str, Any], *source: Path) -> str:
    """Hash of everything that decides the pictures of `draw` with `plan`, and their times.

    surroundings: hash of the model's files, versions, the machine. source: the files whose code draws. Files and
    pictures are hashed by content.
    """
    path = session.facts.path
    asked = {
        name: _by_content(name, getattr(config, name))
        for config in (session.where, draw)
        for name in sorted(type(config).model_fields.keys() - IRRELEVANT - BY_CONTENT)
    }
    everything = {
        "asked": asked | {"dtype": session.engine.dtype},
        "plan": {name: value for name, value in asdict(plan).items() if name != "notes"},
        "loras": [
            {name: value for name, value in lora.items() if name != "file"} for lora in session.loras if adds(lora)
        ],
        "safety": [content_sha256(path / part) for part in SAFETY if (path / part).is_dir()],
        "surroundings": dict(surroundings),
        "source": source_sha256(*source, *(Path(getfile(type(part))) for part in (session.engine, plan.solver))),
    }
    return sha256_bytes(json.dumps(everything, sort_keys=True).encode())


def adds(lora: LoraFacts) -> bool:
    """Whether a LoRA changes any weight: one at 0 leaves the pictures as they are without it."""
    return any((lora["weight"], *lora["blocks"].values()))


def _by_content(name: str, value: Any) -> Any:
    """The value of a field for the key. Files and folders are replaced by a hash of their content."""
    if isinstance(value, bytes):
        return sha256_bytes(value)
    return content_sha256(resolved(value)) if name in PLACES and value and value not in NAMES else value


def content_sha256(path: Path) -> str:
    """Hash of a file's content, or of the names and contents of all files in a folder."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    named = ((file.relative_to(path).as_posix(), file) for file in files)
    return sha256_bytes(*(f"{name}:{_file_sha256(file, _state(file))}\n".encode() for name, file in named))


def _state(file: Path) -> tuple[int, int]:
    """Size and time of the last change. They show whether a large file must be read again."""
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


@cache
def _file_sha256(file: Path, state: tuple[int, int]) -> str:
    return sha256_file(file)


# --- the source --------------------------------------------------------------------------------------------


@cache
def source_sha256(*files: Path) -> str:
    """Hash of these files, of all fewstep files that they import at any depth, and of the tables in their folders."""
    found, waiting = set[Path](), list(files)
    while waiting:
        if (file := waiting.pop()) not in found:
            found.add(file)
            waiting += imported(file)
    tables = {table for file in found if file.is_relative_to(ROOT) for table in file.parent.glob("*.json")}
    tables -= {FOLDER / CHECKSUMS}  # what of the shipped files is used is in the key by content
    return sha256_bytes(*(sha256_file(file).encode() for file in sorted(found | tables)))


def imported(file: Path) -> Iterator[Path]:
    """The files of fewstep that a file imports, with their packages, except fewstep's own list of names."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for parts in (name.split(".") for name in names):
            for depth in range(2, len(parts) + 1 if parts[0] == "fewstep" else 0):
                place = ROOT.joinpath(*parts[1:depth])
                yield from (path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file())
