"""What stands before every route: the Host header, the key, where a browser's request comes from, and a count."""

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fewstep.configs.serving import LOOPBACK
from fewstep.server.metrics import REQUESTS

OPEN = ("/", "/healthz", "/favicon.ico")  # needs no key: the page itself, whose requests then bring one
PAGE = "/page/"
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
DOCS = ("/docs", "/redoc")  # FastAPI's own pages, which load scripts from elsewhere


@dataclass(frozen=True)
class Guard:
    """Refuses requests that this server should not answer, before anything reads them."""

    app: ASGIApp
    host: str  # that the server listens at
    key: str | None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sending = counted(scope, send)
        if (refusal := self.refusal(scope)) is not None:
            await refusal(scope, receive, sending)
            return
        await self.app(scope, receive, sending)

    def refusal(self, scope: Scope) -> JSONResponse | None:
        """The answer to a request that is refused."""
        headers, path = Headers(scope=scope), scope["path"]
        if self.host in LOOPBACK and host_of(headers.get("host", "")) not in LOOPBACK:
            return refused(421, "this server answers only to the name localhost", "open http://127.0.0.1")
        origin = headers.get("origin")
        if origin and urlsplit(origin).netloc != headers.get("host"):
            return refused(403, f"requests of pages from {origin} are not answered", "open this server's own page")
        if self.key is not None and path not in OPEN and not path.startswith(PAGE) and not self.knows(headers):
            return refused(401, "the key is missing or wrong", "send it as Authorization: Bearer KEY")
        return None

    def knows(self, headers: Headers) -> bool:
        """Whether the request brings the key. The comparison takes as long for every wrong one."""
        given = headers.get("authorization", "").removeprefix("Bearer ") or headers.get("x-api-key", "")
        return hmac.compare_digest(given.encode(), (self.key or "").encode())


def host_of(header: str) -> str:
    """The name in a Host header, without its port."""
    return urlsplit(f"//{header}").hostname or "" if "@" not in header else ""


def refused(status: int, message: str, hint: str) -> JSONResponse:
    """An answer with the error."""
    return JSONResponse(error_document(message, hint, None, "invalid_request_error"), status)


def error_document(message: str, hint: str, field: str | None, kind: str) -> dict[str, object]:
    """An error as the APIs have it: OpenAI's object with a hint, and A1111's `detail`."""
    error = {"message": f"{message} ({hint})" if hint else message, "type": kind, "param": field, "code": None}
    return {"error": {**error, "hint": hint}, "detail": message}


def counted(scope: Scope, send: Send) -> Callable[[Message], Awaitable[None]]:
    """`send`, which also counts the answer, and adds headers that make a browser careful."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            route = getattr(scope.get("route"), "path", "other")
            REQUESTS.labels(route, str(message["status"])).inc()
            own = {} if scope["path"] in DOCS else HEADERS
            message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in own.items())]
        await send(message)

    return sending
