"""Uploads to the hub. A run makes its repository before it trains, so that what is refused is refused at once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from fewstep import __version__
from fewstep.errors import FewstepError, option
from fewstep.events import doing
from fewstep.hub.download import LIBRARY
from fewstep.hub.names import HubName
from fewstep.hub.refusals import LOG_IN, hub_error
from fewstep.hub.resolve import hub


@doing("asking the hub")
def make_repository(repository: str) -> None:
    """Make a private repository of this name, unless there is one. Raises FewstepError if the hub refuses."""
    if hub().offline:
        raise FewstepError(
            f"{option('push_to_hub')} {repository}: HF_HUB_OFFLINE forbids it",
            f"unset it, or leave out {option('push_to_hub')}",
        )
    try:
        _api().create_repo(repository, private=True, exist_ok=True)
    except Exception as error:
        raise _refusal(error, repository) from error


@doing("uploading to the hub")
def upload(repository: str, files: Mapping[str, Path]) -> str:
    """Upload files in one commit. Returns its address. files: path in the repository -> file on this machine."""
    from huggingface_hub import CommitOperationAdd  # slow, and few upload
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    silent = are_progress_bars_disabled()
    disable_progress_bars()
    operations = [CommitOperationAdd(name, file) for name, file in files.items()]
    try:
        return str(_api().create_commit(repository, operations, commit_message="Trained by fewstep").commit_url)
    except Exception as error:
        raise _refusal(error, repository) from error
    finally:
        if not silent:
            enable_progress_bars()


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub().endpoint, library_name=LIBRARY, library_version=__version__)


def _refusal(error: Exception, repository: str) -> FewstepError:
    """The FewstepError for what the hub answered. Raises any other error as it is."""
    if type(error) is RuntimeError and isinstance(error.__cause__, Exception):
        error = error.__cause__  # huggingface_hub's error for a large file hides what happened
    if isinstance(error, HfHubHTTPError) and error.response is not None and error.response.status_code in (401, 403):
        return FewstepError(
            f"the hub does not let you write to {repository} ({error.response.status_code})",
            f"{LOG_IN}, with a token that may write to it",
            "push_to_hub",
        )
    if isinstance(error, HFValidationError):
        return FewstepError(f"{option('push_to_hub')} {repository} cannot be a name on the hub", "write owner/name")
    return hub_error(error, HubName(repository), hub().endpoint)
