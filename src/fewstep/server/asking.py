"""What every API asks of the worker: pictures of a request within its limits, as they become ready."""

import asyncio
import base64
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NamedTuple

from PIL import Image, ImageOps
from starlette.requests import Request

from fewstep.configs import Draw, ServeConfig, build
from fewstep.errors import FewstepError, UsageError, option
from fewstep.images import encoded
from fewstep.server.offer import Offer
from fewstep.server.work import Failed, Job, Late, Message, PictureDone, Queue, StepDone
from fewstep.session import PictureRecipe
from fewstep.session.canvas import sides

KINDS = ("PNG", "JPEG", "WEBP")  # of pictures in requests
SIDES = 8192  # of a picture in a request, in pixels
UNITS = {"prompts": " letters", "width": " pixels", "outpaint": " pixels"}  # of limits that are not plain numbers


class PictureRequest(NamedTuple):
    """What a request asks for."""

    draw: Draw
    model: str | None = None  # as the request names it; None is the server's own
    loras: Sequence[str] | None = None  # NAME or NAME:WEIGHT each; None are the server's own
    previews: bool = False  # what pictures look like after each step


@dataclass(frozen=True)
class Ready:
    """A picture for an answer."""

    number: int
    image: Image.Image
    recipe: PictureRecipe

    def file(self, kind: str, quality: int | None = None) -> bytes:
        """A PNG, JPEG or WebP file with the recipe inside; of a quality, without."""
        if quality is None or kind == "png":
            return encoded(self.image, kind, dict(self.recipe))
        return compressed(self.image, kind, quality)


Watch = Callable[[StepDone | Ready], bool]


def never(one: StepDone | Ready) -> bool:
    """Whatever comes, go on."""
    return False


@dataclass(frozen=True)
class Desk:
    """Takes requests for the worker."""

    config: ServeConfig
    offer: Offer
    queue: Queue

    def pictures(self, request: Request, wish: PictureRequest) -> AsyncGenerator[StepDone | Ready]:
        """Steps and pictures, as they come.

        This call raises UsageError for what is beyond the limits or not offered, and Busy if too many wait. The
        iterator raises FewstepError for what cannot be drawn, and Late after the deadline. When it is closed, what is
        not drawn yet is given up.
        """
        self.check(wish.draw)
        loop, inbox = asyncio.get_running_loop(), asyncio.Queue[Message]()

        def tell(message: Message) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(inbox.put_nowait, message)

        model, loras = self.offer.model(wish.model), self.offer.chosen(wish.loras)
        job = Job(wish.draw, model, loras, client_of(request), wish.previews, tell)
        self.queue.put(job)
        return self._listen(job, inbox, loop.time() + self.config.deadline_s)

    async def _listen(
        self, job: Job, inbox: "asyncio.Queue[Message]", until: float
    ) -> AsyncGenerator[StepDone | Ready]:
        ready, clock = 0, asyncio.get_running_loop().time
        try:
            while ready < job.pictures:
                message = await arrived(inbox, until - clock())
                if isinstance(message, Failed):
                    raise message.error
                if isinstance(message, PictureDone):
                    ready += 1
                    yield Ready(message.number, message.picture.image, self.offer.public(message.picture.recipe))
                else:
                    yield message
        finally:
            job.abandoned = True

    async def all(self, request: Request, wish: PictureRequest, stops: Watch = never) -> list[Ready]:
        """All pictures, in order. It stops as soon as the client is gone, or once `stops` says so of what has come."""
        drawing = asyncio.ensure_future(gathered(self.pictures(request, wish), stops))
        leaving = asyncio.ensure_future(left(request))
        try:
            await asyncio.wait((drawing, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not drawing.done():
                raise Gone
            return drawing.result()
        finally:
            for task in (drawing, leaving):
                task.cancel()
            await asyncio.gather(drawing, leaving, return_exceptions=True)

    def check(self, draw: Draw) -> None:
        """Raise UsageError for a request beyond the server's limits."""
        config, count = self.config, len(draw.prompts) * draw.count
        longest = max(map(len, (*draw.prompts, draw.negative_prompt)))
        for name in ("image", "mask", "control_image"):
            check_picture(getattr(draw, name), name, config.max_pixels)
        for field, value, most in (
            ("count", count, config.max_count),
            ("steps", draw.steps or 0, config.max_steps),
            ("prompts", longest, config.max_prompt),
            ("width", (draw.width or draw.height or 1) * (draw.height or draw.width or 1), config.max_pixels),
            ("outpaint", outpainted(draw), config.max_pixels),
        ):
            if value > most:
                raise UsageError(f"{option(field)}: {value:,}{UNITS.get(field, '')}", f"at most {most:,}")


def outpainted(draw: Draw) -> int:
    """Pixels of the canvas that outpainting makes; 0 without it. Raises UsageError for sides that are none."""
    if draw.outpaint is None or draw.image is None:
        return 0
    left, top, right, bottom = sides(draw.outpaint)
    width, height = Image.open(BytesIO(draw.image), formats=KINDS).size
    return (left + (draw.width or width) + right) * (top + (draw.height or height) + bottom)


class Gone(Exception):
    """The client is gone."""


async def arrived(inbox: "asyncio.Queue[Message]", seconds: float) -> Message:
    """The next message. Raises Late if there is none in time."""
    try:
        return await asyncio.wait_for(inbox.get(), max(seconds, 0.001))
    except TimeoutError:
        raise Late from None


async def gathered(pictures: AsyncGenerator[StepDone | Ready], stops: Watch) -> list[Ready]:
    """The pictures, in order, until `stops` says so."""
    ready = []
    async with aclosing(pictures):
        async for one in pictures:
            if isinstance(one, Ready):
                ready.append(one)
            if stops(one):
                break
    return sorted(ready, key=lambda one: one.number)


async def left(request: Request) -> None:
    """Return when the client has gone."""
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            return


def client_of(request: Request) -> str:
    """Who takes a turn: the client's address."""
    return request.client.host if request.client else ""


def check_picture(data: bytes | None, field: str, most: int) -> None:
    """Raise UsageError for what is no PNG, JPEG or WebP, or is too large; nothing but its beginning is decoded."""
    if data is None:
        return
    try:
        with Image.open(BytesIO(data), formats=KINDS) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        raise UsageError(f"{option(field)} has too many pixels", f"at most {8 * most:,} pixels", field) from None
    except Exception:  # damaged data make Pillow raise nearly anything
        raise UsageError(f"{option(field)} is no picture", "send a PNG, JPEG or WebP file", field) from None
    if max(width, height) > SIDES or width * height > 8 * most:
        raise UsageError(f"{option(field)} has {width} x {height} pixels", f"at most {8 * most:,} pixels", field)


def opening(mask: bytes, most: int) -> bytes:
    """Our mask, white where something is drawn, of OpenAI's, which is transparent there. Raises UsageError likewise."""
    check_picture(mask, "mask", most)
    with Image.open(BytesIO(mask), formats=KINDS) as image:
        alpha = image.convert("RGBA").getchannel("A")
    buffer = BytesIO()
    ImageOps.invert(alpha).save(buffer, "PNG")
    return buffer.getvalue()


def picture_of(text: str | None, field: str) -> bytes | None:
    """The bytes of a picture in base64, or in a data URL. Raises UsageError for anything else."""
    if not text:
        return None
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except ValueError:
        raise UsageError(f"{option(field)} is not base64", "send the picture's file in base64", field) from None


def compressed(image: Image.Image, kind: str, quality: int) -> bytes:
    """A JPEG or WebP file of that quality, 0 to 100."""
    buffer = BytesIO()
    image.save(buffer, kind.upper(), quality=quality)
    return buffer.getvalue()


def base64_of(data: bytes) -> str:
    """The bytes in base64."""
    return base64.b64encode(data).decode()


def draw_of(**values: Any) -> Draw:
    """The request to draw; fields that are None keep their defaults. Raises UsageError naming a bad one."""
    return build(Draw, **{name: value for name, value in values.items() if value is not None})


def status_of(error: FewstepError) -> int:
    """The HTTP status of an error."""
    return 503 if isinstance(error, Late) else 400
