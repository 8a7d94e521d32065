"""Names of models and LoRAs to paths on this machine. Files of the hub are downloaded once, into the hub's cache."""

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
from fewstep.hub.refusals import hub_error
from fewstep.io import write_bytes

TRUE = ("1", "ON", "YES", "TRUE")


class Hub(NamedTuple):
    """The hub's address and cache."""

    endpoint: str  # its address, or a mirror's
    cache: Path
    offline: bool  # whether it must not be asked

    def folder(self, repository: str) -> Path:
        """The folder of a repository in the cache; in it are blobs, refs and snapshots."""
        return self.cache / f"models--{repository.replace('/', '--')}"

    def snapshot(self, name: HubName) -> Path | None:
        """The folder of a revision in the cache, which may lack files; None if there is none."""
        folder = self.folder(name.repository)
        ref = folder / "refs" / name.revision
        commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else name.revision
        return folder / "snapshots" / commit if (folder / "snapshots" / commit).is_dir() else None


def hub() -> Hub:
    """The hub as HF_ENDPOINT, HF_HUB_CACHE (or HF_HOME) and HF_HUB_OFFLINE say at this moment."""
    return Hub(
        os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/"),
        Path(os.environ.get("HF_HUB_CACHE", constants.HF_HUB_CACHE)).expanduser(),
        any(os.environ.get(name, "").upper() in TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")),
    )


def resolved(name: str, half: bool = False) -> Path:
    """The path of a local file or folder, an alias, or a hub id `owner/name[/FILE.safetensors][@revision]`.

    Files that are not on this machine are downloaded, and only those that are needed. A name that is none of these is
    taken as a path. half: take a model's weights in fp16 where the repository has them.
    Raises FewstepError if the files cannot be downloaded.
    """
    place = place_on_hub(name)
    return Path(name).expanduser() if place is None else fetched(place, half, hub())


def on_this_machine(name: str) -> bool:
    """Whether `resolved` would find it without a download."""
    place = place_on_hub(name)
    return place is None or in_cache(place, True, hub()) is not None


def place_on_hub(name: str) -> HubName | None:
    """Where the hub has it; None for what is a path on this machine."""
    return None if Path(name).expanduser().exists() else hub_name(name)


@cache
def fetched(place: HubName, half: bool, hub: Hub) -> Path:
    """The path in the hub's cache of the complete model folder, or of the file.

    The hub is asked what a revision is now, unless the revision is a commit that is here, or the hub must not be asked.
    """
    kept = in_cache(place, half, hub)
    pinned = kept is not None and kept[0].name == place.revision
    exact = kept is not None and (half or not any(".fp16" in file for file in kept[1].files))
    if kept is not None and (hub.offline or (pinned and exact)):
        return kept[0] / kept[1].target
    if hub.offline:
        raise FewstepError(
            f"{place} is neither on this machine nor in the hub's cache {hub.cache}, and HF_HUB_OFFLINE forbids"
            " downloads",
            "unset HF_HUB_OFFLINE, or copy the files to this machine and give their path",
        )
    try:
        commit, files = listing(place, hub.endpoint)
    except Exception as error:
        refusal = hub_error(error, place, hub.endpoint)
        if kept is None:
            raise refusal from error
        note(f"{refusal.message.marked}; the copy in the cache is used")
        return kept[0] / kept[1].target
    choice = chosen(files, place, half)
    folder = hub.folder(place.repository)
    download(place, commit, [files[name] for name in choice.files], hub.endpoint, hub.cache, folder)
    if place.revision != commit:  # so that the name is known offline
        write_bytes(folder / "refs" / place.revision, commit.encode())
    return folder / "snapshots" / commit / choice.target


def reachable(endpoint: str, patience_s: float = 3.0) -> bool:
    """Whether a server answers at the address within the time, which includes looking up its name."""
    answers: list[bool] = []

    def ask() -> None:
        with suppress(OSError, ValueError, HTTPException):
            with suppress(HTTPError):  # which is an answer too
                urlopen(Request(endpoint, method="HEAD"), timeout=patience_s).close()
            answers.append(True)

    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(patience_s)
    return bool(answers)


def in_cache(place: HubName, half: bool, hub: Hub) -> tuple[Path, Choice] | None:
    """The snapshot's folder, and the files needed of it, if all are there; else None."""
    folder = hub.snapshot(place)
    if folder is None:
        return None
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    try:
        choice = chosen(names, place, half)
    except FewstepError:
        return None
    return (folder, choice) if complete(folder, choice) else None
