"""`fewstep list`: models and LoRAs that ship, short names of the hub, engines, solvers, and the cache."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from pkgutil import iter_modules
from textwrap import wrap
from typing import Any, get_args

import fewstep
from fewstep.assets import ACCELERATION, LICENCE, MODEL, STYLES
from fewstep.commands.result import Result
from fewstep.configs import ListConfig, Solver
from fewstep.errors import number_of
from fewstep.hub.names import LORAS, MODELS
from fewstep.hub.resolve import hub
from fewstep.io import cache_dir

DAY_S = 86400
LINE = 77  # letters in a line
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
CACHED = {  # folder of the cache -> what it holds
    "compare": "pictures of compare and tune",
    "encoded": "training images and captions, encoded",
    "engines": "networks built for openvino and onnx",
}


def list(config: ListConfig) -> Result:
    """All names that commands understand, and the content of the cache."""
    document = {
        "ships": [
            {"name": MODEL, "kind": "model", "licence": LICENCE},
            {"name": ACCELERATION, "kind": "acceleration LoRA", "licence": LICENCE},
            *({"name": name, "kind": "style LoRA", "licence": LICENCE} for name in STYLES),
        ],
        "hub": {"cache": str(hub().cache), "names": aliases()},
        "engines": engines(),
        "solvers": [name for name in get_args(Solver) if name != "auto"],
        "cache": {"folder": str(cache_dir()), "holds": cached()},
    }
    return Result(document, as_text(document))


def engines() -> tuple[str, ...]:
    """The names of the engines, from the names of their files, because importing them would import torch."""
    folder = Path(fewstep.__file__).parent / "engines"
    return tuple(file.name for file in iter_modules([str(folder)]) if file.name != "engine" and not file.ispkg)


def aliases() -> tuple[dict[str, Any], ...]:
    """The short names of models and LoRAs on the hub, and how much of each is on this machine."""
    here = hub()
    return tuple(
        {
            "name": name,
            "kind": kind,
            "repository": alias.place.repository,
            "licence": alias.licence.name,
            "bytes_here": sum(size for size, _ in files_in(here.folder(alias.place.repository) / "blobs")),
        }
        for kind, table in (("model", MODELS), ("LoRA", LORAS))
        for name, alias in table.items()
    )


def cached() -> tuple[dict[str, Any], ...]:
    """The content of each folder of the cache, with the age of its oldest and its newest file."""
    folders = sorted(folder for folder in cache_dir().glob("*") if folder.is_dir() and folder.name[0] != ".")
    found = []
    for folder in folders:
        if files := [*files_in(folder)]:
            ages = [(time.time() - changed) / DAY_S for _, changed in files]
            found.append(
                {
                    "kind": folder.name,
                    "what": CACHED.get(folder.name, ""),
                    "files": len(files),
                    "bytes": sum(size for size, _ in files),
                    "oldest_days": round(max(ages), 2),
                    "newest_days": round(max(min(ages), 0), 2),
                }
            )
    return tuple(found)


def files_in(folder: Path) -> Iterable[tuple[int, float]]:
    """Size in bytes and time of change of every file in a folder, at any depth; empty for a missing folder."""
    for file in folder.rglob("*"):
        try:
            about = file.lstat()
        except OSError:  # the file was just removed
            continue
        if file.is_file() and not file.is_symlink():
            yield about.st_size, about.st_mtime


def as_text(document: dict[str, Any]) -> str:
    """The document as text for people."""
    place, cache = document["hub"], document["cache"]
    blocks: Sequence[tuple[str, Sequence[Sequence[str]]]] = [
        ("Ships with fewstep", [(one["name"], one["kind"]) for one in document["ships"]]),
        (
            f"On the hub, downloaded when first used to {place['cache']}",
            [
                (
                    one["name"],
                    one["kind"],
                    one["repository"],
                    one["licence"],
                    in_units(one["bytes_here"]) if one["bytes_here"] else "",
                )
                for one in place["names"]
            ],
        ),
        ("Engines", [(name,) for name in document["engines"]]),
        ("Solvers", [(line,) for line in wrap(", ".join(document["solvers"]), LINE, break_on_hyphens=False)]),
        (
            f"The cache, {cache['folder']}",
            [
                (one["kind"], number_of(one["files"], "file"), in_units(one["bytes"]), ages_of(one), one["what"])
                for one in cache["holds"]
            ]
            or [("nothing",)],
        ),
    ]
    text = "\n\n".join(f"{title}\n{columns(rows)}" for title, rows in blocks)
    return text + ("\n\nfewstep doctor --prune DAYS deletes old files from the cache." if cache["holds"] else "")


def columns(rows: Sequence[Sequence[str]]) -> str:
    """The rows as lines, with their cells aligned in columns."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(f"  {line}".rstrip() for line in lines)


def ages_of(one: dict[str, Any]) -> str:
    """The ages in words, such as 3 to 12 days old."""
    newest, oldest = int(one["newest_days"]), int(one["oldest_days"])
    if oldest == 0:
        return "of today"
    return f"{oldest} days old" if newest == oldest else f"{newest} to {oldest} days old"


def in_units(size: float) -> str:
    """A number of bytes in words, such as 3.4 MiB."""
    unit = 0
    while size >= 1024 and unit < len(UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.0f} {UNITS[unit]}" if unit == 0 or size >= 100 else f"{size:.1f} {UNITS[unit]}"
