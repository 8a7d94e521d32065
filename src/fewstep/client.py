"""A client of `fewstep serve`, with the `draw` of a Session."""

import base64
import json
from collections.abc import Iterator, Sequence
from io import BytesIO
from types import TracebackType
from typing import Any, NamedTuple, Self, Unpack

import httpx
from PIL import Image

from fewstep.configs import Draw, DrawOptions, draw_of
from fewstep.errors import FewstepError

PATIENCE_S = 300.0  # how long a picture may take


class RemotePicture(NamedTuple):
    """One picture, and its recipe, which is enough to draw it again."""

    image: Image.Image
    recipe: dict[str, Any]


class Client:
    """Draws on a server.

    with Client("http://127.0.0.1:8000") as client:
        for picture in client.draw("a red fox in the snow", steps=4, seed=7, count=4):
            picture.image.save(f"{picture.recipe['seed']}.png")
    """

    def __init__(
        self, address: str = "http://127.0.0.1:8000", key: str | None = None, timeout_s: float = PATIENCE_S
    ) -> None:
        """address: of the server. key: that it asks for. timeout_s: how long a picture may take."""
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self.address = address
        self._http = httpx.Client(base_url=address, headers=headers, timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def draw(
        self,
        prompts: str | Sequence[str] | Draw,
        *,
        model: str | None = None,
        loras: Sequence[str] | None = None,
        **options: Unpack[DrawOptions],
    ) -> Iterator[RemotePicture]:
        """The pictures of the prompts, one by one as they are drawn, as `Session.draw` has them.

        model: one that the server offers; None = its first. loras: NAME or NAME:WEIGHT each; None = the server's own.
        Raises UsageError for impossible options, and FewstepError with the server's words for what it refuses.
        """
        draw = draw_of(prompts, options)
        body = {name: sendable(value) for name, value in draw.model_dump(exclude_unset=True).items()}
        body.pop("batch_size", None)
        body |= {name: value for name, value in (("model", model), ("loras", loras)) if value is not None}
        return self._pictures(body)

    def _pictures(self, body: dict[str, Any]) -> Iterator[RemotePicture]:
        headers = {"accept": "text/event-stream"}
        try:
            with self._http.stream("POST", "/v1/sample", json=body, headers=headers) as answer:
                if answer.is_error:
                    raise refusal(answer.read())
                for name, data in events(answer.iter_lines()):
                    if name == "error":
                        raise refusal(json.dumps(data).encode())
                    if name == "picture":
                        yield RemotePicture(image_of(data["image"]), data["recipe"])
        except httpx.TimeoutException as error:
            raise FewstepError(f"{self.address} took too long", "ask for fewer steps, or wait longer") from error
        except httpx.HTTPError as error:
            hint = "is the server running? fewstep serve starts one"
            raise FewstepError(f"{self.address} does not answer: {error}", hint) from error


def events(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """Name and data of server-sent events."""
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def sendable(value: Any) -> Any:
    """A value as JSON has it: bytes in base64."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def image_of(text: str) -> Image.Image:
    """The picture of a file in base64."""
    image = Image.open(BytesIO(base64.b64decode(text)))
    image.load()
    return image


def refusal(body: bytes) -> FewstepError:
    """The server's error as one of ours."""
    try:
        error = json.loads(body)["error"]
        message = str(error["message"]).removesuffix(f" ({error['hint']})")
        return FewstepError(message, str(error["hint"]) or "see the server's /docs", error["param"])
    except (ValueError, KeyError, TypeError):
        return FewstepError("the server's answer cannot be read", "is it fewstep serve?")
