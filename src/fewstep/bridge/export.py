"""Exports a model with its LoRAs folded in, as a folder that other programs sample correctly without fewstep."""

from pathlib import Path
from typing import Any

import torch

from fewstep import __version__
from fewstep.assets import LICENCE, shipped_lora
from fewstep.bridge.graphs import exporter, refuse_for_genai, write_graphs
from fewstep.configs import Draw, ExportConfig, build
from fewstep.errors import UsageError, option
from fewstep.events import note
from fewstep.io import atomic_folder, scratch, write_bytes, write_json
from fewstep.lora.files import hash_of
from fewstep.lora.low_rank import combine
from fewstep.lora.recipe import Recipe, origin_in_words
from fewstep.models.fold import fold_on_disk
from fewstep.models.load import RECIPE_FILE, load_model, takes_text
from fewstep.models.model import parts_sha256
from fewstep.models.references import parse_reference
from fewstep.models.single_file import save_folder
from fewstep.models.stepping import Stepping, scheduler_of, write_scheduler
from fewstep.models.sums import Fitted, Term, fit, licences_of_term, tell_loss
from fewstep.session import Session
from fewstep.session.loras import default_loras
from fewstep.session.plan import Plan

CARD, BASE_CARD = "README.md", "README-base.md"
LIBRARIES = {"diffusers": "diffusers", "openvino": "openvino", "onnx": "onnxruntime"}
PROGRAMS = {  # target or consumer -> a program that draws with the folder
    "diffusers": """    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained("{name}")
    pipe("a cat", {options}).images[0].save("cat.png")""",
    "openvino": """    from optimum.intel import OVDiffusionPipeline

    pipe = OVDiffusionPipeline.from_pretrained("{name}")
    pipe("a cat", {options}).images[0].save("cat.png")""",
    "genai": """    import openvino_genai

    pipe = openvino_genai.Text2ImagePipeline("{name}", "CPU")
    picture = pipe.generate("a cat", num_inference_steps={steps}, guidance_scale={guidance_scale})""",
    "onnx": """    from optimum.onnxruntime import ORTDiffusionPipeline

    pipe = ORTDiffusionPipeline.from_pretrained("{name}")
    pipe("a cat", {options}).images[0].save("cat.png")""",
}


def export(config: ExportConfig) -> dict[str, Any]:
    """Write networks, scheduler, recipe and card to config.out, whole or not at all. Returns facts about them.

    The plan is that of `fewstep sample` with the same --model and --lora. The weights are W0 + sum_i w_i Delta W_i,
    computed in float32 and rounded once to the stored type.
    """
    if config.out.exists():
        raise UsageError(
            f"{option('out')} {config.out} already exists", f"choose another {option('out')} for the model"
        )
    if not takes_text(config.model):
        raise UsageError(
            f"{config.model} is a model in pixel space, which export does not write",
            f"distil it with {option('full')}: its result is a folder for diffusers",
        )
    runtime = None if config.to == "diffusers" else exporter(config.to, config.dtype)
    loras = config.loras or default_loras(config.model, "auto")
    session = Session(config.model, loras, engine="torch", dtype="fp32", device="cpu")
    plan = session.plan(build(Draw, prompts=("",)))
    for text in plan.notes:
        note(text)
    if config.consumer == "genai":
        refuse_for_genai(plan, session.facts.prediction_type)
    fitted = fit([parse_reference(text) for text in loras], str(session.facts.path), allow_partial=False)
    recipe, base = recipe_of(session, plan), parts_sha256(session.facts.path)
    with atomic_folder(config.out) as folder, scratch(config.out.parent) as spare:
        modules = combine([(term.reference.weight_of, term.adapter) for term in fitted.terms])
        source = folder_of(session.facts.path, spare / "model")
        facts = session.facts
        stepping, scheduler = scheduler_of(
            source, facts.prediction_type, plan.solver_name, plan.timesteps, len(facts.schedule) // plan.k
        )
        folded = folder if runtime is None else spare / "folded"
        tell_loss(fold_on_disk(source, folded, modules))
        write_scheduler(folded, scheduler, facts.embeds_guidance)
        write_json(folded / RECIPE_FILE, recipe.model_dump(mode="json"))
        differences = {} if runtime is None else write_graphs(runtime, folded, folder)
        if (folder / CARD).is_file():
            (folder / CARD).rename(folder / BASE_CARD)
        write_bytes(folder / CARD, card(config, fitted, plan, stepping, base).encode())
    return {
        "out": str(config.out),
        "to": config.to,
        "model": config.model,
        "lora": list(loras),
        "scheduler": stepping.name,
        "steps": plan.steps,
        "timesteps": list(plan.timesteps),
        "guidance_scale": plan.guidance_scale,
        **({"relative_error": differences} if differences else {}),
    }


def folder_of(model: Path, spare: Path) -> Path:
    """The model's folder. A single file is written to the folder `spare` first, in half precision."""
    if model.is_dir():
        return model
    save_folder(load_model(str(model), torch.float16), spare)
    return spare


def recipe_of(session: Session, plan: Plan) -> Recipe:
    """The folder's recipe, which leads to the plan `plan`."""
    recipes = session.recipes
    first = next((recipe for recipe in recipes if recipe.accelerates), next(iter(recipes), Recipe(method="denoising")))
    return first.model_copy(
        update={
            "family": session.facts.family,
            "prediction_type": session.facts.prediction_type,
            "guidance_scale": plan.guidance_scale,
            "steps": plan.steps if first.accelerates else first.steps,
            "training": {},
            "recognised_by": "",
        }
    )


# --- the card -----------------------------------------------------------------------------------------------


def card(config: ExportConfig, fitted: Fitted, plan: Plan, stepping: Stepping, base: str) -> str:
    """The text of the folder's README: how to sample it, its content and its licences.

    base: hash of the base model's files.
    """
    fresh = plan.gamma if plan.eta is None else plan.eta
    noise = {} if fresh is None else {"eta": fresh}  # diffusers has one name for eta and gamma
    calls = {"num_inference_steps": plan.steps, "guidance_scale": plan.guidance_scale, **stepping.call, **noise}
    options = ", ".join(f"{name}={value}" for name, value in calls.items())
    model = Path(config.model).name if Path(config.model).exists() else config.model
    program = PROGRAMS[config.to if config.consumer == "any" else config.consumer].format(
        name=config.out.name, options=options, steps=plan.steps, guidance_scale=plan.guidance_scale
    )
    name, timesteps = config.out.name, ", ".join(map(str, plan.timesteps))
    return f"""---
library_name: {LIBRARIES[config.to]}
pipeline_tag: text-to-image
---
# {name}

{model} {"with LoRAs folded in" if fitted.terms else "without LoRAs"}. Written by fewstep {__version__}.

## Sample it

{program}

{guided(plan)} `scheduler/` holds the {stepping.name}. The model was made for the timesteps {timesteps}. For fewstep,
`{RECIPE_FILE}` holds the same settings: `fewstep sample "a cat" --model {name}`.

## What is in it

Each weight is W0 + the weighted sum of the LoRAs' updates, added in float32 and rounded once to the stored type.

| weight | file | modules | sha256 | licence |
| ---: | --- | ---: | --- | --- |
| | {model} | | {base} | see [{BASE_CARD}]({BASE_CARD}) if it exists, or ask its publisher |
{"".join(line(term) for term in fitted.terms)}{"".join(map(origin, fitted.terms))}"""


def guided(plan: Plan) -> str:
    """The meaning of the plan's guidance, in words."""
    if plan.embeds_guidance:
        return "The network takes guidance as an input: a step evaluates it once, and a negative prompt has no effect."
    if plan.guidance_scale == 1:
        return "Guidance is off: a step evaluates the network once per picture, and a negative prompt has no effect."
    return "Guidance is on: a step evaluates the network twice per picture."


def line(term: Term) -> str:
    """The row of one LoRA in the card's table."""
    weights = ", ".join([f"{term.reference.weight:g}", *(f"{b}={w:g}" for b, w in term.reference.blocks.items())])
    name, modules = term.reference.path.name, len(term.adapter.modules)
    return f"| {weights} | {name} | {modules} | {hash_of(term.reference.file)} | {licence_of(term)} |\n"


def origin(term: Term) -> str:
    """What a LoRA learnt from, if it learnt from its teacher's pictures, as a paragraph of the card; "" otherwise."""
    words = origin_in_words(term.recipe) if term.recipe else ""
    return words and f"\n{term.reference.path.name} learnt from {words}.\n"


def licence_of(term: Term) -> str:
    """The licences that a LoRA's file names, in words."""
    if shipped_lora(str(term.reference.path)):
        return LICENCE
    return "; ".join(licences_of_term(term)) or "its file does not name one"
