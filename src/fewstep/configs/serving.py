"""The config of the server."""

from typing import Annotated

from pydantic import Field

from fewstep.configs.base import Typed
from fewstep.configs.where import Where


class ServeConfig(Where):
    """Serve pictures on this machine: a web page, an HTTP API, and the image APIs of OpenAI and A1111."""

    excludes = {"api_key": "without_key"}  # noqa: RUF012

    host: str = "127.0.0.1"
    """The address to listen at. Other machines can reach 0.0.0.0, which needs --api-key or --without-key."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """The port; 0 takes a free one."""
    models: Annotated[tuple[str, ...], Typed(with_default=False)] = ()
    """Another model that requests may name, by the last part of its name; several times for several. One model is in
    memory at a time."""
    offer: Annotated[tuple[str, ...], Typed(with_default=False)] = ()
    """A LoRA that requests may plug in, by the name of its file; several times for several. What --lora names, and for
    emoji what ships, may be plugged in too."""
    api_key: str | None = None
    """A key that every request must bring, as `Authorization: Bearer KEY`. The variable FEWSTEP_API_KEY may hold it."""
    without_key: bool = False
    """Let everyone who can reach the address draw, without a key."""
    batch_size: Annotated[int, Field(ge=1, le=256)] = 8
    """Pictures of one size and one number of steps that are drawn at once, whoever asked for them."""
    gather_ms: Annotated[float, Field(ge=0, le=1000)] = 5.0
    """How long an idle server waits for more requests before it draws the first."""
    queue: Annotated[int, Field(ge=1, le=100_000)] = 128
    """Pictures that may wait; further requests are refused with the time to wait."""
    deadline_s: Annotated[float, Field(gt=0, le=86400)] = 300.0
    """After so many seconds a request is given up."""
    max_pixels: Annotated[int, Field(ge=64, le=2**28)] = 2**21
    """Largest width times height of a picture."""
    max_steps: Annotated[int, Field(ge=1, le=1000)] = 100
    """Most steps of a picture."""
    max_count: Annotated[int, Field(ge=1, le=1000)] = 16
    """Most pictures of a request."""
    max_prompt: Annotated[int, Field(ge=1, le=100_000)] = 4000
    """Most letters of a prompt."""
    max_body_mb: Annotated[float, Field(gt=0, le=1000)] = 32.0
    """Largest request, in MB."""


LOOPBACK = ("127.0.0.1", "localhost", "::1")
