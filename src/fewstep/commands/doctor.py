"""`fewstep doctor`: checks whether this machine is ready: packages, devices, disk, cache folder, the hub."""

import os
import platform
import shutil
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from fewstep import __version__
from fewstep.commands.result import Result
from fewstep.configs import DoctorConfig
from fewstep.errors import FewstepError, number_of
from fewstep.events import doing, note
from fewstep.io import cache_dir, write_bytes

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "peft", "openvino", "onnxruntime")
OPTIONAL = {"peft", "openvino", "onnxruntime"}
REMADE = ("compare", "encoded", "engines")  # folders of the cache whose content is made again when it is needed


class Finding(NamedTuple):
    """The result of one check."""

    what: str
    value: str
    ok: bool
    hint: str = ""


def doctor(config: DoctorConfig) -> Result:
    """The results of all checks, with an error if something necessary is missing."""
    if config.prune is not None:
        prune(config.prune)
    findings = examine()
    width = max(len(finding.what) for finding in findings)
    lines = [f"{'ok ' if finding.ok else 'BAD'}  {finding.what:<{width}}  {finding.value}" for finding in findings]
    bad = [finding for finding in findings if not finding.ok]
    error = FewstepError(f"not ready: {', '.join(finding.what for finding in bad)}", bad[0].hint) if bad else None
    return Result([finding._asdict() for finding in findings], "\n".join(lines), error)


def examine() -> list[Finding]:
    """All checks of this machine."""
    return [
        Finding("fewstep", f"{__version__} on Python {platform.python_version()}, {platform.system()}", True),
        *(_package(name) for name in PACKAGES),
        *_devices(),
        _cache(),
        _hub(),
    ]


def _package(name: str) -> Finding:
    try:
        return Finding(name, version(name), True)
    except PackageNotFoundError:
        optional = name in OPTIONAL
        return Finding(name, "not installed" + (" (not needed)" if optional else ""), optional, f"pip install {name}")


@doing("loading PyTorch")
def _devices() -> list[Finding]:
    import torch

    cores, threads = number_of(os.cpu_count() or 1, "core"), number_of(torch.get_num_threads(), "thread")
    findings = [Finding("cpu", f"{cores}, {threads}", True)]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        findings.append(Finding(f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB", True))
    if torch.backends.mps.is_available():
        findings.append(Finding("mps", "available", True))
    return findings


def _cache() -> Finding:
    folder = cache_dir()
    try:
        write_bytes(folder / ".doctor", b"")
        (folder / ".doctor").unlink()
    except FewstepError as error:
        return Finding("cache", error.message, False, "set FEWSTEP_CACHE to a folder you can write to")
    held = ", ".join(f"{name} {size_of(folder / name) / 2**30:.1f} GiB" for name in REMADE)
    return Finding("cache", f"{folder}, {shutil.disk_usage(folder).free / 2**30:.0f} GiB free; {held}", True)


def size_of(folder: Path) -> int:
    """The number of bytes in a folder's files; 0 for a missing folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def prune(days: int) -> None:
    """Delete what is in REMADE and was last needed at least `days` days ago, and note the freed space."""
    freed, oldest = 0, time.time() - days * 86400
    for name in REMADE:
        for path in (cache_dir() / name).glob("[!.]*"):
            if path.stat().st_mtime > oldest:
                continue
            if path.is_dir():
                freed += size_of(path)
                shutil.rmtree(path)
            elif path.suffix == ".safetensors":
                freed += path.stat().st_size
                path.unlink()
    note(f"{freed / 2**30:.1f} GiB deleted from {cache_dir()}")


def _hub() -> Finding:
    """Whether models can be downloaded now. It is never a fault: models on this machine work without the hub."""
    from fewstep.hub.resolve import hub, reachable

    here = hub()
    if here.offline:
        return Finding("hub", f"offline by HF_HUB_OFFLINE, cache {here.cache}", True)
    state = "reachable" if reachable(here.endpoint) else "not reachable (models on this machine work)"
    return Finding("hub", f"{here.endpoint} {state}, cache {here.cache}", True)
