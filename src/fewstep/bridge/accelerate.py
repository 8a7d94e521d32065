"""accelerate() puts a few-step plan, with its solver and LoRAs, on any diffusers pipeline that has a UNet."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from fewstep.bridge.scheduler import FewstepScheduler
from fewstep.diffusion.prediction import prediction_named
from fewstep.diffusion.schedule import SCHEDULE_KEYS, NoiseSchedule, schedule_from_config
from fewstep.errors import FewstepError, UsageError, number_of
from fewstep.events import note
from fewstep.lora.dialects import COMPONENTS, module_name
from fewstep.lora.layers import layers_of, shape_of
from fewstep.lora.low_rank import widest
from fewstep.lora.recipe import Recipe
from fewstep.lora.rounding import loss_note
from fewstep.models.load import model_recipe, published_lcm
from fewstep.models.plugging import Folding, WeightedAdapter, attach
from fewstep.models.references import LoraReference, parse_reference
from fewstep.session.loras import Shelf, recipes_of
from fewstep.session.plan import Plan, plan_sampling

MARK = "_fewstep"  # attribute of a UNet with our LoRAs, and of the class of an accelerated pipeline
OF_THE_MODEL = (*SCHEDULE_KEYS, "prediction_type")
WHICH = "accelerate is for pipelines around a Stable Diffusion UNet: SD 1.x, SD 2.x, SSD-1B, SDXL"


@dataclass(frozen=True, eq=False)
class Accelerated:
    """An accelerated pipeline, until `undo` or the end of a `with` block."""

    pipe: Any = field(repr=False)
    plan: Plan
    _stack: ExitStack = field(repr=False)

    def undo(self) -> None:
        """Restore scheduler, weights (bit for bit), call and defaults. A second call does nothing."""
        self._stack.close()

    def share(self, pipe: Any) -> "Accelerated":
        """Accelerate another pipeline around the same UNet, which already has the LoRAs (diffusers' `from_pipe`).

        Undo the result separately, and before this one.
        """
        if getattr(pipe, "unet", None) is not self.pipe.unet:
            raise FewstepError(f"{type(pipe).__name__} has another UNet", "use accelerate for it")
        refuse_accelerated(pipe)
        with ExitStack() as stack:
            dress(pipe, self.plan, stack)
            return Accelerated(pipe, self.plan, stack.pop_all())

    def __enter__(self) -> "Accelerated":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def accelerate(
    pipe: object,
    lora: str | Path | Sequence[str | Path] | None = None,
    weight: float | Sequence[float] = 1.0,
    steps: int | None = None,
    guidance_scale: float | None = None,
    solver: str = "auto",
    folded: bool = False,
) -> Accelerated:
    """Make `pipe`, a diffusers pipeline, a few-step pipeline in place. The returned object undoes it.

    lora: FILE or FILE:WEIGHT as on the command line, one or several, which add up exactly. weight: one for all LoRAs or
    one each; it multiplies the weights in their names. steps, guidance_scale, solver: None and auto follow the LoRAs'
    recipes. steps counts network evaluations. steps and guidance_scale become the defaults of `pipe`; its calls may
    still set num_inference_steps and guidance_scale. folded: add the LoRAs to the weights (faster, but keeps a copy of
    those weights on the CPU) instead of running them next to the layers.

    Without a LoRA the model must be a few-step model itself: its own recipe shows it, as in models that fewstep
    distilled, or the caller gives the steps or the solver.

    Image-to-image and inpainting run all the steps, inside strength's range. Raises FewstepError for a pipeline
    without a UNet, a LoRA that does not fit, and impossible steps or solvers.
    """
    unet = checked_unet(pipe)
    schedule, layers = schedule_of(pipe), layers_of_pipeline(pipe)
    terms, recipes = read_loras(pipe, layers, references_of(lora, weight))
    if terms:
        check_layers(pipe, folded)
    embedded = config_of(unet).get("time_cond_proj_dim") is not None
    plan = plan_sampling(schedule, recipes, solver, steps, guidance_scale, embeds_guidance=embedded)
    if steps is None and solver == "auto" and not any(recipe.accelerates for recipe in recipes):
        answer_slow(pipe, bool(terms), plan)
    for text in plan.notes:
        note(text)
    with ExitStack() as stack:
        if terms:
            plug(pipe, layers, terms, folded, stack)
            setattr(unet, MARK, True)
            stack.callback(delattr, unet, MARK)
        dress(pipe, plan, stack)
        return Accelerated(pipe, plan, stack.pop_all())


def answer_slow(pipe: Any, plugged: bool, plan: Plan) -> None:
    """When nothing makes the pipeline's model a few-step model: note it if LoRAs were given, else raise UsageError."""
    if not plugged:
        raise UsageError(
            f"nothing makes this {type(pipe).__name__} fast: no LoRA was given, and its model has no recipe",
            'give a LoRA, as in accelerate(pipe, "lcm-lora-sdv1-5"), or the steps and solver of a few-step model',
        )
    note(
        f"none of the LoRAs is an acceleration: {plan.solver_name} in {number_of(plan.steps, 'step')},"
        f" guidance {plan.guidance_scale:g}"
    )


# --- checks -------------------------------------------------------------------------------------------------


def checked_unet(pipe: object) -> nn.Module:
    """The UNet of a pipeline that is not accelerated yet. Raises FewstepError for anything else."""
    name = type(pipe).__name__
    if not hasattr(pipe, "scheduler") or not hasattr(pipe, "components"):
        raise FewstepError(f"{name} is not a diffusers pipeline", WHICH)
    unet = getattr(pipe, "unet", None)
    if not isinstance(unet, nn.Module):
        raise FewstepError(f"{name} has no UNet", WHICH)
    refuse_accelerated(pipe)
    return unet


def config_of(unet: Any) -> Mapping[str, Any]:
    """The UNet's config."""
    config: Mapping[str, Any] = unet.config
    return config


def refuse_accelerated(pipe: Any) -> None:
    """Raise FewstepError for a pipeline that is accelerated."""
    if MARK in vars(type(pipe)):
        raise FewstepError(
            f"this {type(pipe).__name__} is accelerated already", "undo() that first; give several LoRAs as one list"
        )


def check_layers(pipe: Any, folded: bool) -> None:
    """Raise FewstepError when LoRAs would have no effect, or a wrong one."""
    unet = pipe.unet
    if getattr(unet, MARK, False):
        raise FewstepError(
            f"the UNet of this {type(pipe).__name__} has LoRAs from another accelerated pipeline",
            "use share(pipe) on the object that the other accelerate returned",
        )
    modules = list(unet.modules())
    if any(getattr(module, "fused_projections", False) for module in modules):
        raise FewstepError("the projections of the UNet are fused", "call pipe.unfuse_qkv_projections() first")
    compiled = hasattr(unet, "_orig_mod") or any(getattr(m, "_compiled_call_impl", None) for m in modules)
    if compiled and not folded:
        raise FewstepError("the UNet is compiled, so hooks have no effect", "accelerate it first, or use folded=True")


def schedule_of(pipe: Any) -> NoiseSchedule:
    """The noise schedule that the pipeline's model was trained on. Raises FewstepError for other kinds of schedule."""
    config, name = pipe.scheduler.config, type(pipe.scheduler).__name__
    learned = str(config.get("variance_type") or "").startswith("learned")
    if "beta_schedule" not in config or learned or config.get("timestep_type") == "continuous":
        raise FewstepError(f"{name} of {type(pipe).__name__} is not for a Stable Diffusion model", WHICH)
    prediction_named(config.get("prediction_type", "epsilon"))
    return schedule_from_config(config)


def layers_of_pipeline(pipe: Any) -> dict[str, nn.Module]:
    """Name in checkpoints -> module, for every module that a LoRA can adapt; for a PEFT wrapper, the module inside."""
    layers = {}
    for part in COMPONENTS:
        network = getattr(pipe, part, None)
        network = getattr(network, "_orig_mod", network)
        for name, layer in layers_of(network).items() if isinstance(network, nn.Module) else ():
            if ".lora_" not in name:
                layers[module_name(part, name.removesuffix(".base_layer"))] = layer
    return layers


# --- LoRAs --------------------------------------------------------------------------------------------------


def references_of(
    lora: str | Path | Sequence[str | Path] | None, weight: float | Sequence[float]
) -> list[LoraReference]:
    """The references of the LoRAs, with their weights."""
    files = [] if lora is None else [lora] if isinstance(lora, str | Path) else list(lora)
    weights = [weight] * len(files) if isinstance(weight, int | float) else list(weight)
    if len(weights) != len(files) or not all(math.isfinite(w) for w in weights):
        count = number_of(len(files), "LoRA")
        raise UsageError(f"weight {weight} does not fit {count}", "give one number, or one for each")
    named = zip(map(parse_reference, map(str, files)), weights, strict=True)
    return [LoraReference(r.path, w * r.weight, {b: w * own for b, own in r.blocks.items()}) for r, w in named]


def read_loras(
    pipe: Any, layers: Mapping[str, nn.Module], references: Sequence[LoraReference]
) -> tuple[list[WeightedAdapter], tuple[Recipe, ...]]:
    """The LoRAs with their weights, and the recipes, the model's first. Raises FewstepError if a LoRA does not fit."""
    name = str(pipe.config.get("_name_or_path") or type(pipe).__name__)
    shapes = {module: shape for module, layer in layers.items() if (shape := shape_of(layer)) is not None}
    prediction = pipe.scheduler.config.get("prediction_type", "epsilon")
    plugged = Shelf(name, shapes, prediction).fit(references)
    return [one.term for one in plugged], recipes_of(
        model_recipe(Path(name)) or published_lcm(config_of(pipe.unet)), plugged
    )


def plug(
    pipe: Any, layers: Mapping[str, nn.Module], terms: Sequence[WeightedAdapter], folded: bool, stack: ExitStack
) -> None:
    """Plug the LoRAs into the weights, or next to the layers, until the stack is closed.

    Next to weights stored in 8 bits, LoRAs have the type of the other parameters, such as norms. A note tells when
    rounding to the weights' type loses much of the LoRAs.
    """
    if not folded:
        computing = widest(parameter.dtype for parameter in pipe.unet.parameters())
        stack.callback(attach(layers, terms, computing).remove)
        return
    folding = Folding(layers)
    stack.callback(folding.plug, ())
    folding.plug(terms)
    if text := loss_note(folding.lost, "folded=False keeps it"):
        note(text)


# --- the pipeline -------------------------------------------------------------------------------------------


def dress(pipe: Any, plan: Plan, stack: ExitStack) -> None:
    """Give the pipeline our scheduler, and a class of its own whose calls have the plan's defaults."""
    scheduler, kind = pipe.scheduler, type(pipe)
    config = {name: scheduler.config[name] for name in OF_THE_MODEL if name in scheduler.config}
    stepping = {"solver": plan.solver_name, "grid": plan.grid, "k": plan.k, "eta": plan.eta, "gamma": plan.gamma}
    ours = FewstepScheduler.from_config(scheduler.config, **config, **stepping)
    pipe.scheduler = ours
    stack.callback(setattr, pipe, "scheduler", scheduler)
    pipe.__class__ = fast_class(kind, plan)
    stack.callback(setattr, pipe, "__class__", kind)


def fast_class(kind: type, plan: Plan) -> type:
    """A subclass with the same name. Its calls have the plan's defaults, and strength does not drop steps."""
    members = {"__call__": call_of(kind, plan), "__module__": kind.__module__, "__doc__": kind.__doc__, MARK: True}
    if hasattr(kind, "get_timesteps"):
        members["get_timesteps"] = get_timesteps_of(kind)
    return type(kind.__name__, (kind,), members)


def call_of(kind: Any, plan: Plan) -> Callable[..., Any]:
    """`__call__` with the same parameters and the plan's defaults."""
    call, signature = kind.__call__, inspect.signature(kind.__call__)
    planned = {"num_inference_steps": plan.steps, "guidance_scale": plan.guidance_scale}
    defaults = {name: value for name, value in planned.items() if name in signature.parameters}

    @wraps(call)
    def fast_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind_partial(self, *args, **kwargs).arguments
        return call(self, *args, **kwargs, **{k: v for k, v in defaults.items() if k not in given})

    parameters = [p.replace(default=defaults.get(name, p.default)) for name, p in signature.parameters.items()]
    fast_call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return fast_call


def get_timesteps_of(kind: Any) -> Callable[..., Any]:
    """Image-to-image's `get_timesteps`: all steps, inside [0, strength * T].

    It is diffusers' own choice when the caller has set timesteps, another range or another scheduler.
    """
    usual, signature = kind.get_timesteps, inspect.signature(kind.get_timesteps)

    def get_timesteps(self: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, int]:
        given, scheduler = signature.bind(self, *args, **kwargs).arguments, self.scheduler
        chosen = given.get("denoising_start") is not None
        if chosen or not isinstance(scheduler, FewstepScheduler) or scheduler.custom_timesteps:
            timesteps, count = usual(self, *args, **kwargs)
            return timesteps, count
        steps: int = given["num_inference_steps"]
        scheduler.set_timesteps(steps, given["device"], strength=given["strength"])
        return scheduler.timesteps, steps

    return get_timesteps
