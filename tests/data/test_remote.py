"""Shards and tables on a server: of fsspec's memory, and of a web server that answers requests for ranges."""

import re
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest

from fewstep.data.places import spread
from fewstep.data.sources import list_samples, open_source
from fewstep.errors import FewstepError
from tests.data.kinds import PICTURES, expected, listed, parquet, shards


@pytest.fixture
def memory(tmp_path):
    """Two shards and a Parquet table in fsspec's memory."""
    shards(tmp_path, PICTURES)
    parquet(tmp_path, PICTURES)
    system = fsspec.filesystem("memory")
    for path in tmp_path.glob("*.*"):
        system.pipe(f"/bucket/{path.name}", path.read_bytes())
    yield "memory://bucket"
    system.rm("/bucket", recursive=True)


@pytest.mark.parametrize("pattern", ["{000..001}.tar", "*.tar", "00[01].tar", "x.parquet", "*.parquet"])
def test_what_lies_on_a_server(memory, pattern):
    given = f"{memory}/{pattern}"
    assert listed(given) == expected(PICTURES)
    samples = list_samples(given).samples
    assert [samples[i].open() for i in (3, 0, 2, 1)] == [PICTURES[i].png for i in (3, 0, 2, 1)]
    keys = [item.key for rank in range(2) for item in open_source(given).part(rank, 2)]
    assert sorted(keys) == sorted(sample.key for sample in samples)


def test_what_is_not_there_is_named(memory):
    with pytest.raises(FewstepError, match=r"^data not found: memory://bucket/9\.tar\n"):
        list_samples(f"{memory}/9.tar")
    with pytest.raises(FewstepError, match=r"^no file fits memory://other/\*\.tar\n"):
        list_samples("memory://other/*.tar")
    with pytest.raises(FewstepError, match=r"^memory://bucket/x is no address of shards or of tables\n"):
        list_samples(f"{memory}/x")
    with pytest.raises(FewstepError, match=r"^cannot read nowhere://x/0\.tar \(Protocol not known: nowhere"):
        list_samples("nowhere://x/0.tar")
    with pytest.raises(
        FewstepError, match=r"^s3:// needs a package that is not installed \(.*\)\n\nhint: pip install s3f"
    ):
        list_samples("s3://x/0.tar")


class Ranges(BaseHTTPRequestHandler):
    """Files of a folder, whole or in ranges."""

    def __init__(self, folder, asked, *arguments):
        self.folder, self.asked = folder, asked
        super().__init__(*arguments)

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        path = self.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content, found = path.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        part = content[int(found[1]) : int(found[2]) + 1] if found else content
        self.asked.append((self.command, self.path, len(part)))
        self.send_response(206 if found else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        if found:
            self.send_header("Content-Range", f"bytes {found[1]}-{int(found[1]) + len(part) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(part)

    def do_HEAD(self):
        self.do_GET()


@pytest.fixture
def web(tmp_path):
    """The address of a web server, and what it was asked for."""
    asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, tmp_path, asked))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_web_server(web, tmp_path):
    address, asked = web
    shards(tmp_path, PICTURES)
    samples = list_samples(f"{address}/{{000..001}}.tar").samples
    assert len([length for method, _, length in asked if method == "GET" and length > 0]) <= 4  # captions come along
    asked.clear()
    assert [sample.open() for sample in samples] == [picture.png for picture in PICTURES]
    assert sum(length for method, _, length in asked if method == "GET") == sum(len(p.png) for p in PICTURES)
    with pytest.raises(FewstepError, match=r"^data not found: http://.*/7\.tar\n"):
        list_samples(f"{address}/7.tar")


@pytest.mark.parametrize(
    ("pattern", "places"),
    [
        ("a.tar", ["a.tar"]),
        ("{8..11}.tar", ["8.tar", "9.tar", "10.tar", "11.tar"]),
        ("{008..011}", ["008", "009", "010", "011"]),
        ("{a,b}/{0..1}", ["a/0", "a/1", "b/0", "b/1"]),
        ("{only}", ["only"]),
    ],
)
def test_lists_in_braces(pattern, places):
    assert spread(pattern) == places
