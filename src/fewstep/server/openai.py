"""OpenAI's image API, as its client of 2026 speaks it: generations, edits, models."""

import json
import re
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile as Upload

from fewstep.configs import Draw
from fewstep.errors import FewstepError, UsageError
from fewstep.server.asking import Desk, PictureRequest, Ready, base64_of, compressed, draw_of, opening
from fewstep.server.errors import document_of
from fewstep.server.work import StepDone

EVENTS = "text/event-stream"
QUALITY = 100  # of JPEG and WebP, unless output_compression says otherwise
SPELLINGS = {  # fields of ours -> as this API calls them
    "prompts": "prompt",
    "steps": "num_inference_steps",
    "count": "n",
    "width": "size",
    "height": "size",
}
STEPS = {"low": 0.5, "high": 2.0, "hd": 2.0}  # quality: the share of the usual steps
MOST = 8  # steps of a higher quality, where the usual ones are fewer
Format = Literal["png", "jpeg", "webp"]


class ImagesRequest(BaseModel):
    """The fields of both routes, and what local servers usually take beside them."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: Annotated[str, Field(min_length=1)]
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=10)] | None = 1
    size: str | None = "auto"
    quality: Literal["auto", "low", "medium", "high", "standard", "hd"] | None = "auto"
    background: Literal["transparent", "opaque", "auto"] | None = "auto"
    output_format: Format | None = "png"
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    moderation: Literal["auto", "low"] | None = "auto"
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = 0
    stream: bool | None = False
    user: str | None = None
    response_format: Literal["b64_json", "url"] | None = None
    style: Literal["vivid", "natural"] | None = None
    input_fidelity: Literal["high", "low"] | None = None
    negative_prompt: str | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=50)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    loras: list[str] | None = None
    strength: Annotated[float, Field(gt=0, le=1)] | None = None

    def check(self) -> None:
        """Raise UsageError for what this server cannot do."""
        if self.response_format == "url":
            raise UsageError("response_format url is not served", "use b64_json", "response_format")
        if self.background == "transparent":
            raise UsageError("a transparent background is not drawn", "use opaque or auto", "background")

    @property
    def kind(self) -> Format:
        """Of the pictures' files."""
        return self.output_format or "png"


def routes(desk: Desk) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["OpenAI"])

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The models that requests may name."""
        return {"object": "list", "data": [model(name) for name in desk.offer.models]}

    @router.get("/v1/models/{name}")
    async def one_model(name: str) -> Response:
        """One of them."""
        if name not in desk.offer.models:
            return JSONResponse(document_of(UsageError(f"there is no model {name!r}", "see /v1/models", "model")), 404)
        return JSONResponse(model(name))

    @router.post("/v1/images/generations", responses={200: {"content": {"application/json": {}, EVENTS: {}}}})
    async def generate(request: Request, asked: ImagesRequest) -> Response:
        """Draw pictures of a prompt."""
        return await reply(desk, request, asked, "image_generation", {})

    @router.post("/v1/images/edits", responses={200: {"content": {"application/json": {}, EVENTS: {}}}})
    async def edit(
        request: Request,
        prompt: Annotated[str, Form()],
        image: Annotated[list[UploadFile] | None, File()] = None,
        mask: Annotated[UploadFile | None, File()] = None,
    ) -> Response:
        """Draw a picture again after a prompt, or the part of it that a mask leaves open (transparent in the mask).
        The other fields are those of generations."""
        form = await request.form()
        pictures = [one for name in ("image", "image[]") for one in form.getlist(name) if isinstance(one, Upload)]
        if len(pictures) != 1:
            raise UsageError(
                f"{len(pictures)} images were sent", "send one: a picture is drawn from one other", "image"
            )
        fields = {name: value for name, value in form.items() if isinstance(value, str) and name != "image"}
        asked = asked_in({**fields, **({"loras": form.getlist("loras")} if "loras" in form else {})})
        start = {"image": await pictures[0].read(), "strength": asked.strength}
        if mask is not None:
            start["mask"] = opening(await mask.read(), desk.config.max_pixels)
        return await reply(desk, request, asked, "image_edit", start)

    return router


def model(name: str) -> dict[str, Any]:
    """A model as this API lists it."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "fewstep"}


def asked_in(fields: dict[str, Any]) -> ImagesRequest:
    """The fields of a form. Raises what FastAPI raises for a JSON body."""
    try:
        return ImagesRequest.model_validate(fields)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


async def reply(desk: Desk, request: Request, asked: ImagesRequest, event: str, start: dict[str, Any]) -> Response:
    """Pictures as one JSON document, or as a stream of events. start: the picture to begin from, and its mask."""
    asked.check()
    wish = PictureRequest(drawing(asked, start), asked.model, asked.loras, bool(asked.stream and asked.partial_images))
    if asked.stream:
        pictures = stream(desk.pictures(request, wish), asked, event, asked.partial_images or 0)
        return StreamingResponse(pictures, media_type=EVENTS)
    ready = await desk.all(request, wish)
    data = [{"b64_json": base64_of(file_of(one, asked))} for one in ready]
    return JSONResponse(
        {"created": int(time.time()), "data": data, **described(ready[0], asked), "usage": usage(asked, ready)}
    )


def drawing(asked: ImagesRequest, start: dict[str, Any]) -> Draw:
    """The request to draw."""
    width, height = size_of(asked.size)
    return draw_of(
        prompts=(asked.prompt,), count=asked.n, width=width, height=height, seed=asked.seed,
        negative_prompt=asked.negative_prompt, guidance_scale=asked.guidance_scale, steps=steps_of(asked), **start,
    )  # fmt: skip


def size_of(text: str | None) -> tuple[int | None, int | None]:
    """Width and height of WxH; None for auto. Raises UsageError for another text."""
    if text in (None, "auto"):
        return None, None
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", str(text))
    if not found:
        raise UsageError(f"size {text} is not a size", "use auto, or WIDTHxHEIGHT such as 512x512", "size")
    return int(found[1]), int(found[2])


def steps_of(asked: ImagesRequest) -> int | None:
    """As many as were asked for; by quality half or twice the four of an accelerated model; None are the usual ones."""
    if asked.num_inference_steps is not None:
        return asked.num_inference_steps
    share = STEPS.get(asked.quality or "auto")
    return None if share is None else min(int(4 * share), MOST)


def file_of(ready: Ready, asked: ImagesRequest) -> bytes:
    """The picture in the format that was asked for."""
    return ready.file(asked.kind, QUALITY if asked.output_compression is None else asked.output_compression)


def described(ready: Ready, asked: ImagesRequest) -> dict[str, Any]:
    """What an answer says of its pictures."""
    quality = asked.quality if asked.quality in ("low", "medium", "high") else "medium"
    size = f"{ready.image.width}x{ready.image.height}"
    return {"background": "opaque", "output_format": asked.kind, "quality": quality, "size": size}


def usage(asked: ImagesRequest, ready: list[Ready]) -> dict[str, Any]:
    """What it cost: the prompt's words, and the network's rows of all pictures."""
    words, rows = len(asked.prompt.split()), round(sum(one.recipe["nfe"] for one in ready))
    return {
        "input_tokens": words,
        "input_tokens_details": {"text_tokens": words, "image_tokens": 0},
        "output_tokens": rows,
        "total_tokens": words + rows,
    }


async def stream(
    pictures: AsyncIterator[StepDone | Ready], asked: ImagesRequest, event: str, partials: int
) -> AsyncIterator[str]:
    """Partial pictures, spread over the steps, and then each whole one, as server-sent events."""
    try:
        async for one in pictures:
            if isinstance(one, Ready):
                done = {"b64_json": base64_of(file_of(one, asked)), "usage": usage(asked, [one])}
                yield sent(f"{event}.completed", {**done, **described(one, asked)})
            elif one.image is not None and (index := partial_index(one, partials)) is not None:
                file = base64_of(compressed(one.image, asked.kind, QUALITY))
                whole = described(Ready(one.number, one.image, {}), asked)  # type: ignore[typeddict-item]
                yield sent(f"{event}.partial_image", {"b64_json": file, "partial_image_index": index, **whole})
    except FewstepError as error:
        yield sent("error", document_of(error, SPELLINGS))


def partial_index(step: StepDone, partials: int) -> int | None:
    """The number of the partial picture that this step gives; None if it gives none. They are spread evenly."""
    count = min(partials, step.steps - 1)
    at = [round((i + 1) * step.steps / (count + 1)) for i in range(count)]
    return at.index(step.step) if step.step in at else None


def sent(kind: str, data: dict[str, Any]) -> str:
    """One event."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, 'created_at': int(time.time()), **data})}\n\n"
