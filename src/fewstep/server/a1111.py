"""The API of AUTOMATIC1111's web UI, as its clients speak it. Samplers and schedulers that are not here are refused."""

import json
import random
import re
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fewstep.configs import Draw
from fewstep.errors import UsageError
from fewstep.server.asking import Desk, PictureRequest, Ready, base64_of, draw_of, picture_of
from fewstep.server.errors import document_of
from fewstep.server.work import StepDone

SAMPLERS = {  # their name -> our solver
    "LCM": "lcm",
    "TCD": "tcd",
    "DDIM": "ddim",
    "Euler": "euler",
    "Euler a": "euler-a",
    "Heun": "heun",
    "DPM++ 2M": "dpm-solver++",
    "DPM++ 2S": "dpm-solver++2s",
    "DPM++ 3M": "dpm-solver++3m",
    "DPM Solver 2": "dpm-solver",
}
SCHEDULERS = {"Automatic": "auto", "Uniform": "trailing", "Simple": "trailing"}  # their name -> our grid
LORA = re.compile(r"<lora:([^:<>]+)(?::([^:<>]*))?(?::[^<>]*)?>")
SPELLINGS = {
    "prompts": "prompt",
    "guidance_scale": "cfg_scale",
    "count": "batch_size",
    "strength": "denoising_strength",
    "image": "init_images",
    "loras": "prompt",
    "model": "sd_model_checkpoint",
}


class Text2Image(BaseModel):
    """The fields of txt2img that mean something here; others are left alone, as A1111 itself does."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    prompt: str = ""
    negative_prompt: str = ""
    seed: int = -1
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    cfg_scale: Annotated[float, Field(ge=0, le=50)] | None = None
    width: Annotated[int, Field(ge=8, le=8192)] | None = None
    height: Annotated[int, Field(ge=8, le=8192)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=1000)] = 1
    n_iter: Annotated[int, Field(ge=1, le=1000)] = 1
    sampler_name: str | None = None
    sampler_index: str | None = None
    scheduler: str | None = None
    override_settings: dict[str, Any] = Field(default_factory=dict)
    send_images: bool = True

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: Any) -> Any:
        """A field that is null has its default, as in A1111."""
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None}


class Image2Image(Text2Image):
    """The fields of img2img."""

    init_images: list[str] = Field(default_factory=list)
    mask: str | None = None
    denoising_strength: Annotated[float, Field(gt=0, le=1)] | None = None


@dataclass
class WorkState:
    """What /progress tells, and the options that a client has set."""

    step: int = 0
    steps: int = 0
    drawing: int = 0  # requests that are being drawn
    interrupted: int = 0  # how often it was asked for
    options: dict[str, Any] = field(default_factory=dict)


def routes(desk: Desk) -> APIRouter:
    """The routes."""
    router, state = APIRouter(prefix="/sdapi/v1", tags=["A1111"]), WorkState()
    add_state(router, desk, state)
    add_lists(router, desk)

    @router.post("/txt2img")
    async def txt2img(request: Request, asked: Text2Image) -> Response:
        """Draw pictures of a prompt, which may name LoRAs as <lora:name:weight>."""
        return await reply(desk, state, request, asked, {})

    @router.post("/img2img")
    async def img2img(request: Request, asked: Image2Image) -> Response:
        """Draw a picture again after a prompt."""
        sent = [text for text in asked.init_images if text]
        if len(sent) != 1:
            raise UsageError(f"{len(sent)} init_images were sent", "send one", "init_images")
        start: dict[str, Any] = {"image": picture_of(sent[0], "image"), "strength": asked.denoising_strength}
        if asked.mask:
            start["mask"] = picture_of(asked.mask, "mask")
        return await reply(desk, state, request, asked, start)

    return router


def add_state(router: APIRouter, desk: Desk, state: WorkState) -> None:
    """The routes about work under way, and settings."""

    @router.get("/progress")
    async def progress() -> dict[str, Any]:
        """How far the work is."""
        done = state.step / state.steps if state.drawing and state.steps else 0.0
        job = {
            "skipped": False,
            "interrupted": False,
            "job": "drawing" if state.drawing else "",
            "job_count": state.drawing,
        }
        return {"progress": done, "eta_relative": 0.0, "current_image": None, "textinfo": None,
                "state": {**job, "sampling_step": state.step, "sampling_steps": state.steps}}  # fmt: skip

    @router.post("/interrupt")
    async def interrupt() -> dict[str, Any]:
        """Give up what this API's clients are waiting for."""
        state.interrupted += 1
        return {}

    @router.get("/options")
    async def options() -> dict[str, Any]:
        """The settings."""
        return {"sd_model_checkpoint": next(iter(desk.offer.models)), **state.options}

    @router.post("/options")
    async def set_options(values: dict[str, Any]) -> dict[str, Any]:
        """Choose the model of later requests; other settings are kept and mean nothing here."""
        if name := values.get("sd_model_checkpoint"):
            desk.offer.model(checkpoint(name))
        state.options.update({name: value for name, value in values.items() if name == "sd_model_checkpoint"})
        return {}


def add_lists(router: APIRouter, desk: Desk) -> None:
    """The routes that list what requests may name."""

    @router.get("/sd-models")
    async def models() -> list[dict[str, Any]]:
        """The models that requests may name."""
        return [{"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}
                for name in desk.offer.models]  # fmt: skip

    @router.get("/loras")
    async def loras() -> list[dict[str, Any]]:
        """The LoRAs that prompts may name."""
        return [{"name": name, "alias": name, "path": name, "metadata": {}} for name in desk.offer.loras]

    @router.get("/samplers")
    async def samplers() -> list[dict[str, Any]]:
        """The samplers."""
        return [{"name": name, "aliases": [solver], "options": {}} for name, solver in SAMPLERS.items()]

    @router.get("/schedulers")
    async def schedulers() -> list[dict[str, Any]]:
        """The schedules of timesteps."""
        return [{"name": name.lower(), "label": name, "aliases": None, "default_rho": -1.0, "need_inner_model": False}
                for name in SCHEDULERS]  # fmt: skip


def checkpoint(name: Any) -> str:
    """A model's name without the hash that A1111 writes behind it."""
    return str(name).partition(" [")[0]


async def reply(desk: Desk, state: WorkState, request: Request, asked: Text2Image, start: dict[str, Any]) -> Response:
    """Pictures, and what they were drawn with."""
    if (name := asked.sampler_name or asked.sampler_index) and solver_of(name) is None:
        known = f"it has {', '.join(SAMPLERS)}"
        return JSONResponse(document_of(UsageError("Sampler not found", known, "sampler_name")), 404)
    prompt, loras = loras_in(asked.prompt)
    draw = drawing(asked, prompt, start)
    chosen = asked.override_settings.get("sd_model_checkpoint") or state.options.get("sd_model_checkpoint")
    wish = PictureRequest(draw, checkpoint(chosen) if chosen else None, loras)
    interrupted = state.interrupted

    def stops(one: StepDone | Ready) -> bool:
        if isinstance(one, StepDone):
            state.step, state.steps = one.step, one.steps
        return state.interrupted != interrupted

    state.drawing += 1
    try:
        ready = await desk.all(request, wish, stops)
    finally:
        state.drawing -= 1
    images = [base64_of(one.file("png")) for one in ready] if asked.send_images else []
    info = {
        "prompt": asked.prompt,
        "negative_prompt": asked.negative_prompt,
        "seed": draw.seed,
        "all_seeds": [one.recipe["seed"] for one in ready],
        "all_prompts": [asked.prompt] * len(ready),
        "infotexts": [json.dumps(one.recipe) for one in ready],
    }
    parameters = asked.model_dump(exclude={"init_images", "mask"})
    return JSONResponse({"images": images, "parameters": parameters, "info": json.dumps(info)})


def drawing(asked: Text2Image, prompt: str, start: dict[str, Any]) -> Draw:
    """The request to draw. A negative seed is drawn at random, as A1111 does."""
    name = asked.sampler_name or asked.sampler_index
    scheduler = SCHEDULERS.get(asked.scheduler or "Automatic") or SCHEDULERS.get((asked.scheduler or "").capitalize())
    if scheduler is None:
        raise UsageError(f"unknown scheduler {asked.scheduler}", f"known ones: {', '.join(SCHEDULERS)}", "scheduler")
    return draw_of(
        prompts=(prompt,), negative_prompt=asked.negative_prompt, steps=asked.steps, guidance_scale=asked.cfg_scale,
        seed=asked.seed if asked.seed >= 0 else random.randrange(2**32), count=asked.batch_size * asked.n_iter,
        width=asked.width, height=asked.height, solver=solver_of(name) if name else None, grid=scheduler, **start,
    )  # fmt: skip


def solver_of(name: str) -> str | None:
    """Our solver of their sampler; None for an unknown one."""
    known = {theirs.lower(): ours for theirs, ours in SAMPLERS.items()} | {ours: ours for ours in SAMPLERS.values()}
    return known.get(name.lower())


def loras_in(prompt: str) -> tuple[str, tuple[str, ...] | None]:
    """The prompt without its <lora:...>, and these as NAME:WEIGHT; None if it names none."""
    found = LORA.findall(prompt)
    rest = " ".join(LORA.sub(" ", prompt).split())
    return rest, tuple(f"{name}:{weight or 1}" for name, weight in found) or None
