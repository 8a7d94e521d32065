"""Downloads from the hub into its own cache. They continue where they stopped, and are checked before they are used."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import get_token, hf_hub_download, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

from fewstep import __version__
from fewstep.errors import FewstepError, Interrupted
from fewstep.events import doing
from fewstep.hub.names import HubName
from fewstep.hub.refusals import damaged_file, download_error, full_disk
from fewstep.io import sha256_file

LIBRARY = "fewstep"
PATIENCE_S = 10.0  # how long the hub may take to answer
COMMIT, SHA256 = re.compile("[0-9a-f]{40}"), re.compile("[0-9a-f]{64}")


class Listed(NamedTuple):
    """A file as the hub lists it."""

    name: str
    size: int
    sha256: str  # of a large (LFS) file; "" for a small file, which git keeps


@doing("asking the hub")
def listing(place: HubName, endpoint: str) -> tuple[str, Mapping[str, Listed]]:
    """The commit of a revision, and its files by name.

    Raises what huggingface_hub raises, and ValueError for an answer that no hub gives.
    """
    from huggingface_hub import HfApi  # slow, and few ask the hub

    info = HfApi(endpoint=endpoint, library_name=LIBRARY, library_version=__version__).model_info(
        place.repository, revision=place.revision, files_metadata=True, timeout=PATIENCE_S
    )
    files = {
        f.rfilename: Listed(f.rfilename, (f.lfs.size if f.lfs else f.size) or 0, f.lfs.sha256 if f.lfs else "")
        for f in info.siblings or []
    }
    if not COMMIT.fullmatch(info.sha or "") or not all(SHA256.fullmatch(f.sha256) for f in files.values() if f.sha256):
        raise ValueError("no commit and hashes in the answer")  # commits and hashes become file names
    return str(info.sha), files


def download(place: HubName, commit: str, files: Sequence[Listed], endpoint: str, cache: Path, folder: Path) -> None:
    """Download the files that are missing in folder/snapshots/commit.

    Raises FewstepError. What was downloaded by then is kept, and the next download continues from it.
    """
    missing = [file for file in files if not (folder / "snapshots" / commit / file.name).exists()]
    missing_bytes = sum(file.size - bytes_here(folder, file) for file in missing)
    if missing_bytes > free_bytes(cache):
        raise full_disk(place, cache, missing_bytes)
    for file in missing:
        try:
            if file.sha256:
                fetch_blob(place, commit, file, endpoint, folder)
            hf_hub_download(  # it links a blob that is there, and downloads a small file
                place.repository,
                file.name,
                revision=commit,
                endpoint=endpoint,
                cache_dir=cache,
                library_name=LIBRARY,
                library_version=__version__,
            )
        except FewstepError:
            raise
        except KeyboardInterrupt:
            raise Interrupted(f"stopped while {place} was downloaded", "run it again: it continues there") from None
        except Exception as error:
            raise download_error(error, place, file.name, endpoint, cache) from error


def fetch_blob(place: HubName, commit: str, file: Listed, endpoint: str, folder: Path) -> None:
    """Download a large file to the blobs, where its name is its SHA-256. The hash is checked before the file is named.

    huggingface_hub itself checks only the size. Since its version 1 it also begins again where another run stopped.
    """
    blob, part = blob_of(folder, file), part_of(folder, file)
    lock = folder.parent / ".locks" / folder.name / f"{file.sha256}.lock"
    for path in (lock, part):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            return
        if size_of(part) > file.size:
            part.unlink()
        url = hf_hub_url(place.repository, file.name, revision=commit, endpoint=endpoint)
        with part.open("ab") as end:
            http_get(
                url,
                end,
                resume_size=size_of(part),
                headers=headers(),
                expected_size=file.size,
                displayed_filename=file.name,
            )
        if (found := sha256_file(part)) != file.sha256:
            part.unlink()
            raise damaged_file(place, file.name, found, file.sha256)
        part.replace(blob)


def headers() -> dict[str, str]:
    """The headers of a request, with the token of HF_TOKEN or of the login if there is one.

    The token is not sent to other hosts.
    """
    token = get_token()
    return {"user-agent": f"{LIBRARY}/{__version__}"} | ({"authorization": f"Bearer {token}"} if token else {})


def blob_of(folder: Path, file: Listed) -> Path:
    """The path of a large file in the hub's cache."""
    return folder / "blobs" / file.sha256


def part_of(folder: Path, file: Listed) -> Path:
    """The path of a large file that is not downloaded to its end."""
    return folder / "blobs" / f"{file.sha256}.incomplete"


def bytes_here(folder: Path, file: Listed) -> int:
    """How many bytes of a file are on this machine already."""
    return max(size_of(blob_of(folder, file)), size_of(part_of(folder, file))) if file.sha256 else 0


def size_of(path: Path) -> int:
    """The size of a file in bytes; 0 if there is no such file."""
    return path.stat().st_size if path.is_file() else 0


def free_bytes(folder: Path) -> int:
    """The free bytes on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.exists())).free
