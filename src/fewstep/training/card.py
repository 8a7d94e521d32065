"""The model card beside a result: what it was made from, how to draw with it, how it was trained, what it scored."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep import __version__
from fewstep.assets import MODEL
from fewstep.configs import AdapterConfig
from fewstep.errors import number_of
from fewstep.hub import hub_name
from fewstep.hub.licences import CARD, SPELLINGS
from fewstep.io import read_json, read_lines, write_bytes
from fewstep.lora.files import open_lora
from fewstep.lora.recipe import Recipe, origin_in_words
from fewstep.models.load import RECIPE_FILE
from fewstep.training.adapt import result_in
from fewstep.training.progress import QUALITY

SCHEDULERS = {"lcm": "LCMScheduler", "tcd": "TCDScheduler"}  # solver -> diffusers' class


def write_card(config: AdapterConfig, caption: str) -> Path:
    """Write the card of a finished run to OUT/README.md. Returns its path. caption: an example of a prompt."""
    path = config.out / CARD
    write_bytes(path, card(config, recipe_in(result_in(config.out, config)), caption).encode())
    return path


def recipe_in(result: Path) -> Recipe:
    """The recipe in a LoRA file or a model folder that a run wrote."""
    if result.is_dir():
        return Recipe(**read_json(result / RECIPE_FILE, "the recipe"))
    recipe = open_lora(result).recipe
    assert recipe is not None, "every result has one"
    return recipe


def card(config: AdapterConfig, recipe: Recipe, caption: str) -> str:
    """The text of the card."""
    few = (
        f"draws in {number_of(recipe.steps, 'step')}"
        if recipe.accelerates and recipe.steps
        else "draws in another style"
    )
    what = "A fine-tuned model" if config.full else f"A LoRA of rank {config.rank}"
    sheets = sorted((config.out / "previews").glob("*.png"))
    picture = f"\n![Pictures of the last step of training](previews/{sheets[-1].name})\n" if sheets else ""
    licence = recipe.licence or "not known; that of the base model holds for it too"
    origin = origin_in_words(recipe)
    return f"""{front_matter(config, recipe)}
# {title(config)}

{what}, made from {recipe.base_model}, which {few}. Trained by fewstep {__version__}.
{picture}
## Draw with it

{with_fewstep(config, caption)}
{with_diffusers(config, recipe, caption)}
## How it was made

{f"It learnt from {origin}." if origin else ""}

{facts(recipe)}
{scores(config.out)}
## Licence

{licence}.
"""


def title(config: AdapterConfig) -> str:
    """The name of the result."""
    return (config.push_to_hub or str(config.out.absolute())).rpartition("/")[2]


def base_of(config: AdapterConfig) -> str | None:
    """The base model's id on the hub; None for a model of this machine, or the embedded one."""
    place = None if config.model == MODEL or Path(config.model).expanduser().exists() else hub_name(config.model)
    return place.repository if place else None


def front_matter(config: AdapterConfig, recipe: Recipe) -> str:
    """The card's facts for the hub, in YAML."""
    spelled = {name: own for own, name in SPELLINGS.items()}.get(recipe.licence)
    values: dict[str, Any] = {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "license": spelled or ("other" if recipe.licence else None),
        "license_name": None if spelled or not recipe.licence else recipe.licence,
        "base_model": base_of(config),
        "tags": ["fewstep", "text-to-image", recipe.method, *([] if config.full else ["lora"])],
    }
    lines = [f"{name}: {json.dumps(value)}" for name, value in values.items() if value is not None]  # JSON is YAML
    return "\n".join(["---", *lines, "---"])


def with_fewstep(config: AdapterConfig, caption: str) -> str:
    """The command that draws with the result, beside the card."""
    words = ["fewstep", "sample", json.dumps(caption)]
    if config.full:
        words += ["--model", config.push_to_hub or "model"]
    else:
        words += [] if config.model == MODEL else ["--model", base_of(config) or "THE-BASE-MODEL"]
        words += ["--lora", config.push_to_hub or "lora.safetensors"]
    return f"```\n{' '.join(words)}\n```\n"


def with_diffusers(config: AdapterConfig, recipe: Recipe, caption: str) -> str:
    """A program that draws with the result in diffusers; "" where its schedulers lack the solver."""
    solver = SCHEDULERS.get(recipe.solver)
    if config.model == MODEL or (recipe.accelerates and solver is None):
        return ""
    place = repr(config.push_to_hub or "model" if config.full else base_of(config) or "the base model's folder")
    lines = [
        "import torch",
        f"from diffusers import DiffusionPipeline{f', {solver}' if solver else ''}",
        "",
        f'pipe = DiffusionPipeline.from_pretrained({place}, torch_dtype=torch.float16).to("cuda")',
    ]
    if not config.full:
        lines.append(f'pipe.load_lora_weights({config.push_to_hub or "."!r}, weight_name="lora.safetensors")')
    if solver:
        lines.append(f"pipe.scheduler = {solver}.from_config(pipe.scheduler.config)")
    options = f", num_inference_steps={recipe.steps}, guidance_scale={recipe.guidance_scale or 1.0}" if solver else ""
    lines.append(f"pipe({caption!r}{options}).images[0]")
    return "\nIn diffusers:\n\n```python\n" + "\n".join(lines) + "\n```\n"


def facts(recipe: Recipe) -> str:
    """A table of how the result was trained."""
    own = {"method": recipe.method, "k": recipe.k, "teacher_guidance_scale": recipe.teacher_guidance_scale}
    rows = {**own, **{name: x for name, x in recipe.training.items() if not isinstance(x, Mapping)}}
    return table(("", ""), {name.replace("_", " "): x for name, x in rows.items() if x is not None})


def scores(out: Path) -> str:
    """A section with the scores of the last preview and of the best; "" for a run without."""
    lines = read_lines(out / QUALITY)
    measures = [name for name in lines[-1] if name not in ("step", "measure", "best")] if lines else []
    if not measures:
        return ""
    best = next((line for line in reversed(lines) if line.get("best")), None)
    rows = {name: f"{lines[-1][name]:.4g}" + (f" | {best[name]:.4g}" if best else "") for name in measures}
    head = f"step {lines[-1]['step']}" + (f" | best, by {best['measure']}: step {best['step']}" if best else "")
    named = table(("measure_steps", head), rows)
    return (
        f"\n## Scores\n\nOf pictures in 1, 2 and 4 steps beside the teacher's (kid_t: lower is nearer it).\n\n{named}"
    )


def table(head: tuple[str, str], rows: Mapping[str, object]) -> str:
    """A table in Markdown."""
    bar = " --- |" * (2 + head[1].count("|"))
    return (
        "\n".join([f"| {head[0]} | {head[1]} |", f"|{bar}", *(f"| {name} | {x} |" for name, x in rows.items())]) + "\n"
    )
