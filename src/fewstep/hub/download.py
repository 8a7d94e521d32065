"""Files from the hub into its own cache: resumed where they broke off, and checked before they are used."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, get_token, hf_hub_download, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

from fewstep import __version__
from fewstep.errors import FewstepError, Interrupted
from fewstep.events import doing
from fewstep.hub.names import HubName
from fewstep.hub.refusals import broken_off, damaged, full
from fewstep.io import sha256_file

US = "fewstep"
PATIENCE_S = 10.0  # for an answer
COMMIT, SHA256 = re.compile("[0-9a-f]{40}"), re.compile("[0-9a-f]{64}")


class Listed(NamedTuple):
    """A file as the hub lists it."""

    name: str
    size: int
    sha256: str  # of a large (LFS) file; "" for the small ones, which git keeps


@doing("asking the hub")
def listing(wanted: HubName, endpoint: str) -> tuple[str, Mapping[str, Listed]]:
    """The commit a revision is, and its files. Raises what huggingface_hub raises, and ValueError for odd answers."""
    info = HfApi(endpoint=endpoint, library_name=US, library_version=__version__).model_info(
        wanted.repository, revision=wanted.revision, files_metadata=True, timeout=PATIENCE_S
    )
    files = {
        f.rfilename: Listed(f.rfilename, (f.lfs.size if f.lfs else f.size) or 0, f.lfs.sha256 if f.lfs else "")
        for f in info.siblings or []
    }
    if not COMMIT.fullmatch(info.sha or "") or not all(SHA256.fullmatch(f.sha256) for f in files.values() if f.sha256):
        raise ValueError("no commit and hashes in the answer")  # both become file names
    return str(info.sha), files


def download(wanted: HubName, commit: str, files: Sequence[Listed], endpoint: str, cache: Path, folder: Path) -> None:
    """Have the files in folder/snapshots/commit. Raises FewstepError; what came so far is kept for the next try."""
    missing = [file for file in files if not (folder / "snapshots" / commit / file.name).exists()]
    to_come = sum(file.size - bytes_here(folder, file) for file in missing)
    if to_come > free_bytes(cache):
        raise full(wanted, cache, to_come)
    for file in missing:
        try:
            if file.sha256:
                fetch_blob(wanted, commit, file, endpoint, folder)
            hf_hub_download(  # links the blob that is there, or downloads a small file
                wanted.repository,
                file.name,
                revision=commit,
                endpoint=endpoint,
                cache_dir=cache,
                library_name=US,
                library_version=__version__,
            )
        except FewstepError:
            raise
        except KeyboardInterrupt:
            raise Interrupted(f"stopped while {wanted} came from the hub", "run it again: it goes on there") from None
        except Exception as error:
            raise broken_off(error, wanted, file.name, endpoint, cache) from error


def fetch_blob(wanted: HubName, commit: str, file: Listed, endpoint: str, folder: Path) -> None:
    """Have a large file among the blobs under its SHA-256, which is checked before it gets that name.

    huggingface_hub itself checks sizes only, and from version 1 on begins again what another run left unfinished.
    """
    blob, part = blob_of(folder, file), part_of(folder, file)
    lock = folder.parent / ".locks" / folder.name / f"{file.sha256}.lock"
    for place in (lock, part):
        place.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            return
        if size_of(part) > file.size:
            part.unlink()
        url = hf_hub_url(wanted.repository, file.name, revision=commit, endpoint=endpoint)
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
            raise damaged(wanted, file.name, found, file.sha256)
        part.replace(blob)


def headers() -> dict[str, str]:
    """Who asks: HF_TOKEN's owner, or who logged in, if any. The token is not carried on to other hosts."""
    token = get_token()
    return {"user-agent": f"{US}/{__version__}"} | ({"authorization": f"Bearer {token}"} if token else {})


def blob_of(folder: Path, file: Listed) -> Path:
    """Where the hub's cache keeps a large file."""
    return folder / "blobs" / file.sha256


def part_of(folder: Path, file: Listed) -> Path:
    """Where the beginning of a large file waits for its rest."""
    return folder / "blobs" / f"{file.sha256}.incomplete"


def bytes_here(folder: Path, file: Listed) -> int:
    """How much of a file need not come."""
    return max(size_of(blob_of(folder, file)), size_of(part_of(folder, file))) if file.sha256 else 0


def size_of(path: Path) -> int:
    """Bytes of a file; 0 when there is none."""
    return path.stat().st_size if path.is_file() else 0


def free_bytes(folder: Path) -> int:
    """Room on the disk that a folder is on, or will be."""
    return shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.exists())).free
