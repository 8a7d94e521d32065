"""A name that was typed, as a path on this machine: what the hub has is downloaded once, into the hub's own cache."""

import os
from contextlib import suppress
from functools import cache
from http.client import HTTPException
from pathlib import Path
from threading import Thread
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from huggingface_hub import constants

from fewstep.errors import FewstepError
from fewstep.events import note
from fewstep.hub.choice import Choice, chosen, complete
from fewstep.hub.download import download, listing
from fewstep.hub.names import HubName, hub_name
from fewstep.hub.refusals import explained
from fewstep.io import write_bytes

YES = ("1", "ON", "YES", "TRUE")


class Hub(NamedTuple):
    """The hub as the environment sets it up."""

    endpoint: str  # its address, or a mirror's
    cache: Path
    offline: bool

    def folder(self, repository: str) -> Path:
        """Where the hub's cache keeps a repository: blobs, refs, snapshots."""
        return self.cache / f"models--{repository.replace('/', '--')}"

    def snapshot(self, name: HubName) -> Path | None:
        """The files of a revision in the cache, as far as they are there; None when it is not known."""
        folder = self.folder(name.repository)
        ref = folder / "refs" / name.revision
        commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else name.revision
        return folder / "snapshots" / commit if (folder / "snapshots" / commit).is_dir() else None


def hub() -> Hub:
    """The hub by HF_ENDPOINT, HF_HUB_CACHE (or HF_HOME) and HF_HUB_OFFLINE, as they are now."""
    return Hub(
        os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/"),
        Path(os.environ.get("HF_HUB_CACHE", constants.HF_HUB_CACHE)).expanduser(),
        any(os.environ.get(name, "").upper() in YES for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")),
    )


def resolved(name: str, half: bool = False) -> Path:
    """The path of a local file or folder, an alias, or a hub id `owner/name[/FILE.safetensors][@revision]`.

    What is not on this machine is downloaded, as little as is needed. half: of a model's weights, those stored in
    fp16, where the repository has such. A name that is none of these is returned as the path it spells.
    Raises FewstepError for what cannot be had.
    """
    path = Path(name).expanduser()
    wanted = None if path.exists() else hub_name(name)
    return path if wanted is None else fetched(wanted, half, hub())


@cache
def fetched(wanted: HubName, half: bool, hub: Hub) -> Path:
    """The model's folder or the file in the hub's cache, complete; the hub is asked for what may have changed."""
    kept = in_cache(wanted, half, hub)
    pinned = kept is not None and kept[0].name == wanted.revision
    exact = kept is not None and (half or not any(".fp16" in file for file in kept[1].files))
    if kept is not None and (hub.offline or (pinned and exact)):
        return kept[0] / kept[1].target
    if hub.offline:
        raise FewstepError(
            f"{wanted} is neither here nor in the hub's cache {hub.cache}, and HF_HUB_OFFLINE forbids to download it",
            "unset HF_HUB_OFFLINE, or copy the files here and give their path",
        )
    try:
        commit, files = listing(wanted, hub.endpoint)
    except Exception as error:
        refusal = explained(error, wanted, hub.endpoint)
        if kept is None:
            raise refusal from error
        note(f"{refusal.message}; the copy in the cache is used")
        return kept[0] / kept[1].target
    choice = chosen(files, wanted, half)
    folder = hub.folder(wanted.repository)
    download(wanted, commit, [files[name] for name in choice.files], hub.endpoint, hub.cache, folder)
    if wanted.revision != commit:  # so that the name is known offline
        write_bytes(folder / "refs" / wanted.revision, commit.encode())
    return folder / "snapshots" / commit / choice.target


def reachable(endpoint: str, patience_s: float = 3.0) -> bool:
    """Whether anything answers at the address in that time, name look-up included."""
    answers: list[bool] = []

    def ask() -> None:
        with suppress(OSError, ValueError, HTTPException):
            with suppress(HTTPError):  # an answer too
                urlopen(Request(endpoint, method="HEAD"), timeout=patience_s).close()
            answers.append(True)

    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(patience_s)
    return bool(answers)


def in_cache(wanted: HubName, half: bool, hub: Hub) -> tuple[Path, Choice] | None:
    """The snapshot and what of it is meant, if it is all there."""
    folder = hub.snapshot(wanted)
    if folder is None:
        return None
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    try:
        choice = chosen(names, wanted, half)
    except FewstepError:
        return None
    return (folder, choice) if complete(folder, choice) else None
