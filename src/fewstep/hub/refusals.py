"""The errors of downloads: one line each that says why the hub did not give a file, and a hint."""

import errno
from pathlib import Path

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from fewstep.errors import FewstepError
from fewstep.hub.names import ALIASES, MOVED, HubName

CLIENTS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")  # the HTTP libraries of huggingface_hub
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
AGAIN = "run it again: it continues where it stopped"
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def hub_error(error: Exception, place: HubName, endpoint: str) -> FewstepError:
    """The FewstepError for what went wrong between this machine and the hub. Raises any other error as it is."""
    if isinstance(error, HFValidationError):
        return FewstepError(f"{place.repository} cannot be a name on the hub", "a hub id is owner/name")
    if isinstance(error, RevisionNotFoundError):
        return FewstepError(f"{place.repository} has no revision {place.revision}", "leave out what follows the @")
    if isinstance(error, EntryNotFoundError) and isinstance(error, HfHubHTTPError):
        return FewstepError(f"{place.repository} has no such file", f"see {endpoint}/{place.repository}")
    if isinstance(error, HfHubHTTPError):
        return status_error(error, place, endpoint)
    if unreachable(error):
        return FewstepError(
            f"cannot reach the hub at {endpoint} for {place}",
            "check the connection and HF_ENDPOINT, or give the path of files on this machine",
        )
    if isinstance(error, ValueError | TypeError | KeyError):
        return FewstepError(f"the server at {endpoint} is not a hub", "check HF_ENDPOINT and the network's proxy")
    raise error


def status_error(error: HfHubHTTPError, place: HubName, endpoint: str) -> FewstepError:
    """The FewstepError for an answer with an HTTP status that means failure."""
    status, page = error.response.status_code, f"{endpoint}/{place.repository}"
    if isinstance(error, GatedRepoError):
        return FewstepError(
            f"{place.repository} is gated ({status}): its owner asks you to accept a licence first",
            f"accept it at {page}, then {LOG_IN}",
        )
    if status == 404 or (isinstance(error, RepositoryNotFoundError) and status != 401):
        hint = f"check the spelling; the short names are {', '.join(ALIASES)}"
        return FewstepError(f"the hub has no {place.repository} ({status})", moved(place) or hint)
    if status == 401:
        return FewstepError(
            f"the hub does not show {place.repository} (401): it is private or gated, or does not exist",
            moved(place) or f"check the spelling; accept its licence at {page} and {LOG_IN}",
        )
    if status == 403:
        return FewstepError(
            f"the hub does not let you read {place.repository} (403)",
            f"accept its licence at {page}, and use a token that may read it (HF_TOKEN)",
        )
    return FewstepError(f"the hub at {endpoint} answered {status} about {place.repository}", "try again later")


def moved(place: HubName) -> str:
    """The hint for a repository that its owner took down; "" for others."""
    alias = MOVED.get(place.repository)
    return f"it was taken down: use {alias}, which is {ALIASES[alias].place.repository}" if alias else ""


def unreachable(error: BaseException) -> bool:
    """Whether the network failed, whichever HTTP library huggingface_hub uses."""
    kinds = (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, TimeoutError)
    return isinstance(error, kinds) or type(error).__module__.partition(".")[0] in CLIENTS


def download_error(error: Exception, place: HubName, file: str, endpoint: str, cache: Path) -> FewstepError:
    """The FewstepError for an error during the download of a file. Raises any other error as it is."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return full_disk(place, cache)
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return hub_error(error, place, endpoint)
    if isinstance(error, HfHubHTTPError) or unreachable(error) or "onsistency check" in str(error):
        status = f" ({error.response.status_code})" if isinstance(error, HfHubHTTPError) else ""
        return FewstepError(f"the download of {place.repository}/{file} failed{status}", AGAIN)
    if isinstance(error, OSError):
        return FewstepError(
            f"cannot write to the hub's cache {cache} ({error.strerror or error})", "set HF_HUB_CACHE to another folder"
        )
    raise error


def full_disk(place: HubName, cache: Path, needed_bytes: int = 0) -> FewstepError:
    """The FewstepError for a full disk. needed_bytes: how many more the download needs; 0 if that is not known."""
    needs = f" needs {needed_bytes / 2**30:.1f} GiB more" if needed_bytes else ""
    return FewstepError(
        f"no space left in the hub's cache {cache}: {place}{needs or ' does not fit'}",
        "free some space, or set HF_HUB_CACHE to a folder on another disk; what was downloaded is kept",
    )


def damaged_file(place: HubName, file: str, found: str, expected: str) -> FewstepError:
    """The FewstepError for a file whose content is not what the hub lists."""
    return FewstepError(
        f"{place.repository}/{file} was damaged on the way: its SHA-256 begins with {found[:12]}, not {expected[:12]}",
        "the file was removed: run it again; if this happens again, use another mirror (HF_ENDPOINT)",
    )
