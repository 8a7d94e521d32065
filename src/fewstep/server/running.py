"""Runs the application until it is told to stop."""

import socket
from collections.abc import Callable
from contextlib import suppress

import uvicorn

from fewstep.configs import ServeConfig
from fewstep.errors import FewstepError, option
from fewstep.server.app import new_app

DRAIN_S = 60  # for requests that are being answered when the server is told to stop
BACKLOG = 2048  # connections that may wait to be taken


def run(config: ServeConfig, ready: Callable[[str], object]) -> str:
    """Serve, and return the address once it has stopped. ready: called with it when requests are answered."""
    listening = bound(config.host, config.port)
    host, port = listening.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    app = new_app(config)
    ready(address)
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=DRAIN_S)
    )
    with listening, suppress(KeyboardInterrupt):  # uvicorn raises it once requests are finished
        server.run(sockets=[listening])
    return address


def bound(host: str, port: int) -> socket.socket:
    """A socket at the address. Raises FewstepError if that is taken or is none of this machine's."""
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(place[:2], family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FewstepError(
            f"cannot listen at {host}, port {port}: {reason}", f"choose another {option('port')}"
        ) from error
