"""Ways to draw the pictures of a benchmark. Each opens its model, then draws batches and times their parts."""

import warnings
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, NamedTuple

import torch
from PIL.Image import Image

from fewstep.configs import Where, build
from fewstep.evaluate.bench.plan import BenchPlan
from fewstep.evaluate.row_pictures import PARTS, Stopwatch
from fewstep.models.load import DTYPES, fast_dtype, pick_device
from fewstep.models.quiet import quiet
from fewstep.models.references import parse_reference
from fewstep.models.stepping import scheduler_of
from fewstep.session import Session

GUIDE, TUNED = "diffusers, as its guide says", "diffusers, tuned by hand"
OWN = "fewstep "  # before the name of the engine
BEFORE = "before"  # what a GPU still has to do when a part begins


class TimedBatch(NamedTuple):
    """Pictures, and the seconds of the parts of their making."""

    images: list[Image]
    seconds: dict[str, float]  # by names of PARTS


class Opened(NamedTuple):
    """An arrangement that is ready to draw."""

    draw: Callable[[int], TimedBatch]  # so many pictures together
    dtype: str  # of the network
    device: torch.device
    engine: str = ""  # of fewstep: what auto stands for


def opened(name: str, plan: BenchPlan) -> Opened:
    """The arrangement of this name, with its model loaded. Raises FewstepError or ImportError for what is missing."""
    if name.startswith(OWN):
        return open_fewstep(plan, name.removeprefix(OWN))
    return open_diffusers(plan, tuned=name == TUNED)


def open_fewstep(plan: BenchPlan, engine: str) -> Opened:
    """fewstep with an engine."""
    options = {"engine": engine, "dtype": plan.dtype, "device": plan.device, "decoder": plan.decoder}
    session = Session.open(build(Where, model=str(plan.folder), loras=plan.loras, **options))
    prompts = different(plan)

    def draw(pictures: int) -> TimedBatch:
        request = plan.draw.model_copy(update={"prompts": (next(prompts),), "count": pictures, "batch_size": pictures})
        watch = Stopwatch(session.engine.device)
        images = [picture.image for picture in session.pictures(request, plan.plan, watch)]
        return TimedBatch(images, watch.seconds)

    name = type(session.engine).__module__.rpartition(".")[2]  # an engine's file is named as people type it
    return Opened(draw, session.engine.dtype, session.engine.device, name)


def open_diffusers(plan: BenchPlan, tuned: bool) -> Opened:
    """A pipeline of diffusers.

    As its guide to LCM-LoRA says: half precision on a GPU, else float32; the LoRA beside the layers. tuned: the fastest
    precision of the device, the LoRA fused, and convolutions in channels-last order.
    """
    from diffusers import DiffusionPipeline  # a slow import

    device = pick_device(plan.device)
    dtype = fast_dtype(device) if tuned else DTYPES["fp32" if device.type == "cpu" else "fp16"]
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the names of arguments change from version to version
        pipe = DiffusionPipeline.from_pretrained(
            plan.folder, torch_dtype=dtype, local_files_only=True, safety_checker=None
        )
        stepping, pipe.scheduler = scheduler_of(
            plan.folder, plan.prediction_type, plan.plan.solver_name, plan.plan.timesteps, plan.points
        )
        add_loras(pipe, plan.loras, fused=tuned)
    pipe.to(device)
    if tuned:
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    pipe.set_progress_bar_config(disable=True)
    seconds = dict.fromkeys(PARTS, 0.0)
    pipe.encode_prompt = timed(pipe.encode_prompt, "text", seconds, device)
    pipe.unet.forward = timed(pipe.unet.forward, "network", seconds, device)
    pipe.vae.decode = timed(pipe.vae.decode, "decoder", seconds, device)
    draw, prompts = plan.draw, different(plan)
    options = {"num_inference_steps": plan.plan.steps, "guidance_scale": draw.guidance_scale, **stepping.call}

    def draw_batch(pictures: int) -> TimedBatch:
        seconds.update(dict.fromkeys(PARTS, 0.0))
        generators = [torch.Generator("cpu").manual_seed(draw.seed + i) for i in range(pictures)]
        size = {"width": draw.width, "height": draw.height}
        images = pipe([next(prompts)] * pictures, generator=generators, **size, **options).images
        return TimedBatch(images, dict(seconds))

    return Opened(draw_batch, next(name for name, known in DTYPES.items() if known == dtype), device)


def different(plan: BenchPlan) -> Iterator[str]:
    """A prompt for each batch, none twice: what a program remembers of a prompt is of no use for the next."""
    return (f"{prompt} {number}" for number in count(1) for prompt in plan.draw.prompts)


def add_loras(pipe: Any, loras: tuple[str, ...], fused: bool) -> None:
    """Load the LoRAs into the pipeline; fused: into the weights."""
    weights = {}
    for number, reference in enumerate(map(parse_reference, loras)):
        name, weights[name] = f"lora{number}", reference.weight
        file = reference.file
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name, local_files_only=True)
    if weights:
        pipe.set_adapters(list(weights), list(weights.values()))
    if weights and fused:
        pipe.fuse_lora(adapter_names=list(weights))
        pipe.unload_lora_weights()


def timed(
    function: Callable[..., Any], part: str, seconds: dict[str, float], device: torch.device
) -> Callable[..., Any]:
    """The function, which also adds its time to that of a part."""

    def call(*args: Any, **options: Any) -> Any:
        watch = Stopwatch(device)
        watch(BEFORE)
        made = function(*args, **options)
        watch(part)
        seconds[part] += watch.seconds[part]
        return made

    return call
