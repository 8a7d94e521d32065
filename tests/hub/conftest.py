"""A stand-in hub for each test, in place of the real one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from fewstep.hub.resolve import fetched
from tests.hub.stand_in import StandIn


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    """The stand-in, which HF_ENDPOINT points to, with an empty cache and nobody logged in."""
    stand_in = StandIn()
    monkeypatch.setenv("HF_ENDPOINT", stand_in.endpoint)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # large files go by LFS
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 512)  # what is kept of a download that breaks off
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    yield stand_in
    stand_in.close()
    fetched.cache_clear()
