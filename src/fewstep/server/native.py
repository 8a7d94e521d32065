"""fewstep's own API: /v1/sample, whose body has the fields of Draw."""

import json
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

from fewstep.configs import Draw, Solver, describe
from fewstep.errors import FewstepError, UsageError
from fewstep.images import SUFFIXES
from fewstep.server.asking import Desk, PictureRequest, Ready, base64_of, compressed, draw_of, picture_of
from fewstep.server.errors import document_of
from fewstep.server.work import StepDone

EVENTS, JSON = "text/event-stream", "application/json"
PICTURES = ("image", "mask", "control_image")
OMITTED = ("batch_size",)  # the server's
PREVIEW_QUALITY = 80


def several(value: Any) -> Any:
    """One prompt as a list of one."""
    return [value] if isinstance(value, str) else value


def with_fields(text: str) -> str:
    """A help text that names fields where it named options of the command line."""
    return re.sub(r"--([a-z][a-z-]*)", lambda found: f"`{found[1].replace('-', '_')}`", text)


def drawing_fields() -> dict[str, Any]:
    """The fields of Draw for a JSON body: pictures are base64, one prompt may stand alone."""
    describe(Draw)
    fields: dict[str, Any] = {}
    for name, info in Draw.model_fields.items():
        if name in OMITTED:
            continue
        default = ... if name == "prompts" else info.get_default()
        kind: Any = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
        if name in PICTURES:
            kind = str | None
        elif name == "prompts":
            kind = Annotated[list[str], BeforeValidator(several)]
        fields[name] = (kind, Field(default, description=with_fields(info.description or "")))
    return fields


class SampleRequest(BaseModel):
    """What a request has beside the fields of Draw."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str | None = Field(None, description="One that /v1/offer names; by default the server's first.")
    loras: list[str] | None = Field(None, description="NAME or NAME:WEIGHT each; by default the server's own.")
    format: Literal["png", "jpeg", "webp"] = Field("png", description="Of the pictures.")
    previews: bool = Field(False, description="Send what pictures look like after each step, in a stream of events.")


def sample_body() -> type[SampleRequest]:
    """The body of /v1/sample: SampleRequest, and the fields of Draw."""
    return create_model("SampleBody", __base__=SampleRequest, **drawing_fields())


def draw_in(body: SampleRequest) -> Draw:
    """The Draw of a request's body. Raises UsageError naming a bad field."""
    values = {name: value for name, value in body if name in Draw.model_fields and name in body.model_fields_set}
    pictures = {name: picture_of(values[name], name) for name in PICTURES if name in values}
    return draw_of(**{**values, **pictures, "prompts": tuple(values["prompts"])})


def routes(desk: Desk) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["fewstep"])

    async def sample(request: Request, body: SampleRequest) -> Response:
        """Draw pictures. The `Accept` header chooses the answer: JSON, an image (of one picture), or a stream of events
        (`text/event-stream`: `step`, `picture`, and at last `done` or `error`).
        """
        accept = request.headers.get("accept", "")
        wish = PictureRequest(draw_in(body), body.model, body.loras, body.previews and EVENTS in accept)
        if EVENTS in accept:
            return StreamingResponse(events(desk.pictures(request, wish), body.format), media_type=EVENTS)
        ready = await desk.all(request, wish)
        if accept.startswith("image/"):
            if len(ready) != 1:
                raise UsageError("an image answers a request for one picture", "ask for JSON, or for one", "count")
            return Response(ready[0].file(body.format), media_type=f"image/{body.format}")
        return Response(json.dumps({"pictures": [entry(one, body.format) for one in ready]}), media_type=JSON)

    sample.__annotations__["body"] = sample_body()
    router.post("/v1/sample", responses={200: {"content": {kind: {} for kind in (JSON, EVENTS, "image/png")}}})(sample)

    @router.get("/v1/offer")
    def offer() -> dict[str, Any]:  # in a thread: it reads files
        """What requests may name, and the server's limits."""
        config = desk.config
        limits = {name.removeprefix("max_"): getattr(config, name) for name in type(config).model_fields
                  if name.startswith("max_")}  # fmt: skip
        return {
            "models": list(desk.offer.models),
            "loras": list(desk.offer.loras),
            "plugged": desk.offer.plugged(config),
            "accelerations": desk.offer.accelerations(),
            "fits": desk.offer.fitting(),
            "solvers": list(get_args(Solver)),
            "limits": limits,
            "formats": list(SUFFIXES),
        }

    return router


def entry(ready: Ready, kind: str) -> dict[str, Any]:
    """A picture in a JSON answer."""
    return {"number": ready.number, "image": base64_of(ready.file(kind)), "format": kind, "recipe": ready.recipe}


async def events(drawing: AsyncIterator[StepDone | Ready], kind: str) -> AsyncIterator[str]:
    """Steps, pictures, and the end, as server-sent events."""
    try:
        async for one in drawing:
            if isinstance(one, StepDone):
                image = one.image and base64_of(compressed(one.image, "jpeg", PREVIEW_QUALITY))
                yield event("step", {"number": one.number, "step": one.step, "steps": one.steps, "image": image})
            else:
                yield event("picture", entry(one, kind))
    except FewstepError as error:
        yield event("error", document_of(error))
        return
    yield event("done", {})


def event(name: str, data: Any) -> str:
    """One server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
