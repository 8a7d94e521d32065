"""A stand-in for the Hugging Face hub, and for the other host that it sends large files from."""

import hashlib
import json
import re
from base64 import b64decode
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BROKEN = -1
LARGE = (".safetensors", ".bin")  # kept by LFS
INFO = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?")
UPLOAD = re.compile(r"/api/models/([^/]+/[^/]+)/(?:preupload|commit)/main|/([^/]+/[^/]+)\.git/info/lfs/objects/batch")
FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


def large(name: str) -> bool:
    return name.endswith(LARGE)


@dataclass
class Repository:
    """Files by name, at one commit, which `main` is."""

    files: dict[str, bytes]
    commit: str = COMMIT
    lies: set[str] = field(default_factory=set)  # files whose listed SHA-256 is another's

    def sha256(self, name: str) -> str:
        return hashlib.sha256(self.files[name] + (b"lie" if name in self.lies else b"")).hexdigest()

    def etag(self, name: str) -> str:
        return self.sha256(name) if large(name) else hashlib.sha1(self.files[name]).hexdigest()

    def info(self) -> dict[str, object]:
        siblings = []
        for name, content in self.files.items():
            facts: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": "b" * 40}
            if large(name):
                facts["lfs"] = {"sha256": self.sha256(name), "size": len(content), "pointerSize": 134}
            siblings.append(facts)
        return {"id": "x", "sha": self.commit, "siblings": siblings}


def repository_of(folder: Path) -> Repository:
    """All files of a folder."""
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return Repository(files)


@dataclass
class Asked:
    """One request."""

    method: str
    path: str
    range: str
    token: str
    host: str  # hub or files


class StandIn:
    """The hub: `repositories` by id; `refusals` are status codes (and error codes) by id instead of them.

    drops: bytes after which the host of large files hangs up, one for each of the next answers; BROKEN is a 503.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.refusals: dict[str, tuple[int, str]] = {}
        self.file_refusals: dict[str, int] = {}  # by a file's name
        self.drops: list[int] = []
        self.asked: list[Asked] = []
        self.made: dict[str, dict[str, object]] = {}  # repository -> how it was asked for
        self.received: dict[str, bytes] = {}  # large files that were uploaded, by SHA-256
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), partial(kind, self)) for kind in (Hub, Files)]
        self.threads = [Thread(target=server.serve_forever, args=(0.01,), daemon=True) for server in self.servers]
        for thread in self.threads:
            thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.servers[0].server_port}"

    @property
    def files(self) -> str:
        return f"http://127.0.0.1:{self.servers[1].server_port}"

    def close(self) -> None:
        for server, thread in zip(self.servers, self.threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()

    def fetched(self) -> list[str]:
        """The large files that were sent for, by name."""
        return [a.path.rpartition("/resolve/")[2].partition("/")[2] for a in self.asked if a.host == "files"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    host = ""

    def __init__(self, hub: StandIn, *arguments: object) -> None:
        self.hub = hub
        super().__init__(*arguments)  # type: ignore[arg-type]

    def log_message(self, *arguments: object) -> None:
        pass

    def note(self) -> str:
        path = unquote(urlsplit(self.path).path)
        head = self.headers
        self.hub.asked.append(
            Asked(self.command, path, head.get("Range", ""), head.get("Authorization", ""), self.host)
        )
        return path

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


class Hub(Handler):
    """The API, and files: small ones at once, for large ones the other host is named."""

    host = "hub"

    def do_GET(self) -> None:
        path = self.note()
        asked = INFO.fullmatch(path) or FILE.fullmatch(path)
        if asked is None:
            return self.answer(404)
        repository_id = asked[1]
        if repository_id in self.hub.refusals:
            status, code = self.hub.refusals[repository_id]
            return self.answer(status, **({"X_Error_Code": code} if code else {}))
        repository = self.hub.repositories.get(repository_id)
        if repository is None:
            return self.answer(404, X_Error_Code="RepoNotFound")
        if asked[2] not in (None, "main", repository.commit):
            return self.answer(404, X_Error_Code="RevisionNotFound")
        if asked.re is INFO:
            return self.answer(200, json.dumps(repository.info()).encode(), Content_Type="application/json")
        return self.file(repository, asked[3])

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        """What an upload asks for: a repository, which files are large, where these go, and the commit."""
        path, body = self.note(), self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = UPLOAD.fullmatch(path)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if name in self.hub.refusals:
                return self.answer(self.hub.refusals[name][0])
            self.hub.made[name] = asked
            self.hub.repositories.setdefault(name, Repository({}))
            return self.json({"url": f"{self.hub.endpoint}/{name}"})
        if path == "/api/validate-yaml":
            return self.json({"errors": [], "warnings": []})
        if found is None:
            return self.answer(404)
        name, kind = found[1] or found[2], "lfs" if found[2] else path.split("/")[-2]
        if name in self.hub.refusals:
            return self.answer(self.hub.refusals[name][0])
        if kind == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            kinds = {True: "lfs", False: "regular"}
            facts = [{"path": file, "uploadMode": kinds[large(file)], "shouldIgnore": False} for file in files]
            return self.json({"files": facts})
        if kind == "lfs":
            objects = json.loads(body)["objects"]
            places = [{"upload": {"href": f"{self.hub.endpoint}/put/{one['oid']}"}} for one in objects]
            return self.json({"objects": [o | {"actions": a} for o, a in zip(objects, places, strict=True)]})
        for value in map(json.loads, body.splitlines()):
            file = value["value"]
            if value["key"] == "file":
                self.hub.repositories[name].files[file["path"]] = b64decode(file["content"])
            elif value["key"] == "lfsFile":
                self.hub.repositories[name].files[file["path"]] = self.hub.received[file["oid"]]
        commit = self.hub.repositories[name].commit
        url = f"{self.hub.endpoint}/{name}/commit/{commit}"
        return self.json({"commitUrl": url, "commitOid": commit, "success": True})

    def do_PUT(self) -> None:
        path = self.note()
        self.hub.received[path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200)

    def json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def file(self, repository: Repository, name: str) -> None:
        if name in self.hub.file_refusals:
            return self.answer(self.hub.file_refusals[name])
        if name not in repository.files:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=repository.commit)
        content, headers = repository.files[name], {"X_Repo_Commit": repository.commit}
        if not large(name):
            return self.answer(200, content, ETag=f'"{repository.etag(name)}"', **headers)
        return self.answer(
            302,
            Location=f"{self.hub.files}{self.path}",
            X_Linked_Etag=f'"{repository.etag(name)}"',
            X_Linked_Size=str(len(content)),
            **headers,
        )


class Files(Handler):
    """The host of large files, which knows ranges and may hang up."""

    host = "files"

    def do_GET(self) -> None:
        asked = FILE.fullmatch(self.note())
        assert asked is not None
        content = self.hub.repositories[asked[1]].files[asked[3]]
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1]) if "Range" in self.headers else 0  # type: ignore[index]
        drop = self.hub.drops.pop(0) if self.hub.drops else None
        if drop == BROKEN:
            return self.answer(503)
        ranged = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        if drop is None:
            return self.answer(206 if start else 200, content[start:], **ranged)
        self.send_response(206 if start else 200)
        for name, value in ({"Content-Length": str(len(content) - start)} | ranged).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content[start : start + drop])
        self.close_connection = True
        return None

    def do_HEAD(self) -> None:
        self.do_GET()
