"""A server of the embedded model, in this process."""

import base64
import io
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image

from fewstep.configs import ServeConfig, build
from fewstep.server.app import new_app
from fewstep.server.running import bound


def config(**changes: Any) -> ServeConfig:
    return build(ServeConfig, **({"dtype": "fp32", "device": "cpu", "gather_ms": 0} | changes))


@pytest.fixture(scope="session")
def http() -> Iterator[TestClient]:
    """A client of the application itself."""
    with TestClient(new_app(config(max_count=6)), base_url="http://127.0.0.1:8000") as client:
        yield client


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """The address of a server that answers on a real port."""
    with serving(gather_ms=20) as found:
        yield found


@contextmanager
def serving(**changes: Any) -> Iterator[str]:
    """The address of a server of this config, inside the block."""
    listening = bound("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(new_app(config(**changes)), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    until(lambda: server.started)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(30)
    listening.close()


@contextmanager
def process(log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`fewstep serve` in a process of its own, and its address. It ends with the block at the latest."""
    command = [sys.executable, "-m", "fewstep", "serve", "--port", "0", "--device", "cpu"]
    with log.open("w") as file, subprocess.Popen(command, stderr=file, env=os.environ | {"NO_COLOR": "1"}) as server:
        try:
            until(lambda: "serving emoji at" in log.read_text() or server.poll() is not None, 180)
            found = re.search(r"http://\S+:\d+", log.read_text())
            assert found, log.read_text()
            yield server, found[0]
        finally:
            server.kill()


def until(true: Any, seconds: float = 60) -> None:
    """Wait until it is."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


def image_of(text: str) -> Image.Image:
    """The picture of a file in base64."""
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    image.load()
    return image


def png(size: tuple[int, int] = (128, 128), colour: Any = "red", mode: str = "RGB") -> bytes:
    """The file of a picture of one colour."""
    return file_of(Image.new(mode, size, colour))


def file_of(image: Image.Image) -> bytes:
    """A picture's file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
