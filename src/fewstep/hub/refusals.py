"""Why something could not be had from the hub, in one line with a hint."""

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

CLIENTS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")  # of huggingface_hub's versions
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
AGAIN = "run it again: it goes on where it stopped"
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def explained(error: Exception, wanted: HubName, endpoint: str) -> FewstepError:
    """The refusal that an answer of the hub, or the lack of one, means; other errors are raised as they are."""
    if isinstance(error, HFValidationError):
        return FewstepError(f"{wanted.repository} is no name the hub could have", "a hub id is owner/name")
    if isinstance(error, RevisionNotFoundError):
        return FewstepError(f"{wanted.repository} has no revision {wanted.revision}", "leave out what follows the @")
    if isinstance(error, EntryNotFoundError) and isinstance(error, HfHubHTTPError):
        return FewstepError(f"{wanted.repository} has no such file", f"see {endpoint}/{wanted.repository}")
    if isinstance(error, HfHubHTTPError):
        return answered(error, wanted, endpoint)
    if unreachable(error):
        return FewstepError(
            f"cannot reach the hub at {endpoint} for {wanted}",
            "check the connection and HF_ENDPOINT, or give the path of files on this machine",
        )
    if isinstance(error, ValueError | TypeError | KeyError):
        return FewstepError(f"what answers at {endpoint} is no hub", "check HF_ENDPOINT and the network's proxy")
    raise error


def answered(error: HfHubHTTPError, wanted: HubName, endpoint: str) -> FewstepError:
    """The refusal behind a status code."""
    status, page = error.response.status_code, f"{endpoint}/{wanted.repository}"
    if isinstance(error, GatedRepoError):
        return FewstepError(
            f"{wanted.repository} is gated ({status}): its owner asks to accept a licence first",
            f"accept it at {page}, then {LOG_IN}",
        )
    if status == 404 or (isinstance(error, RepositoryNotFoundError) and status != 401):
        hint = f"check the spelling; {' '.join(ALIASES)} are known by these short names"
        return FewstepError(f"the hub has no {wanted.repository} ({status})", moved(wanted) or hint)
    if status == 401:
        return FewstepError(
            f"the hub does not show {wanted.repository} (401): it is private or gated, or there is no such one",
            moved(wanted) or f"check the spelling; accept its licence at {page} and {LOG_IN}",
        )
    if status == 403:
        return FewstepError(
            f"the hub refuses {wanted.repository} to you (403)",
            f"accept its licence at {page}, and use a token with the right to read it (HF_TOKEN)",
        )
    return FewstepError(f"the hub at {endpoint} answered {status} about {wanted.repository}", "try again later")


def moved(wanted: HubName) -> str:
    """A hint for a repository that is gone; "" for others."""
    alias = MOVED.get(wanted.repository)
    return f"it was taken down: use {alias}, which is {ALIASES[alias].place.repository}" if alias else ""


def unreachable(error: BaseException) -> bool:
    """Whether this is the network's fault, in the words of any of huggingface_hub's HTTP clients."""
    kinds = (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, TimeoutError)
    return isinstance(error, kinds) or type(error).__module__.partition(".")[0] in CLIENTS


def broken_off(error: Exception, wanted: HubName, file: str, endpoint: str, cache: Path) -> FewstepError:
    """The refusal for an error while a file came."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return full(wanted, cache)
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return explained(error, wanted, endpoint)
    if isinstance(error, HfHubHTTPError) or unreachable(error) or "onsistency check" in str(error):
        status = f" ({error.response.status_code})" if isinstance(error, HfHubHTTPError) else ""
        return FewstepError(f"the download of {wanted.repository}/{file} broke off{status}", AGAIN)
    if isinstance(error, OSError):
        return FewstepError(
            f"cannot write to the hub's cache {cache} ({error.strerror or error})", "set HF_HUB_CACHE to another folder"
        )
    raise error


def full(wanted: HubName, cache: Path, needed_bytes: int = 0) -> FewstepError:
    """The refusal for want of room."""
    needs = f" needs {needed_bytes / 2**30:.1f} GiB more" if needed_bytes else ""
    return FewstepError(
        f"no space left in the hub's cache {cache}: {wanted}{needs or ' does not fit'}",
        "free some space, or set HF_HUB_CACHE to a folder on another disk; what came so far is kept",
    )


def damaged(wanted: HubName, file: str, found: str, expected: str) -> FewstepError:
    """The refusal of a file that is not what the hub lists."""
    return FewstepError(
        f"{wanted.repository}/{file} arrived damaged: its SHA-256 begins {found[:12]}, not {expected[:12]}",
        "it was removed; run it again, and if this happens again use another mirror (HF_ENDPOINT)",
    )
