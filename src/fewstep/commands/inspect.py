"""`fewstep inspect`: facts about a LoRA, the models it fits and its recipe; or the recipe of a picture."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.assets import MODEL
from fewstep.commands.redraw import typed_lora
from fewstep.commands.result import Result
from fewstep.configs import InspectConfig
from fewstep.data.found import SUFFIXES
from fewstep.errors import Line, number_of, option, printable
from fewstep.events import doing
from fewstep.families import FAMILIES, ModuleShape
from fewstep.images import is_picture
from fewstep.lora.blocks import blocks_of
from fewstep.lora.files import Base, hash_of, open_lora
from fewstep.lora.fitting import origin_of
from fewstep.lora.low_rank import Adapter, misfits, square_of
from fewstep.lora.recipe import KEY, VERSION, Recipe, origin_in_words
from fewstep.models.references import parse_reference
from fewstep.models.weights import base_name, weights_of
from fewstep.session.recipe import read_recipe

METADATA = ("ss_base_model_version", "modelspec.architecture", "ss_network_module", "license", "modelspec.license",
         VERSION, "fewstep.sources")  # fmt: skip
SAMPLING = (
    "method",
    "solver",
    "steps",
    "guidance_scale",
    "k",
    "grid",
    "edges",
    "teacher_guidance_scale",
    "recognised_by",
    "caveat",
)
READABLE = 300  # characters of a line; --json prints all
STRENGTH = " (Frobenius norm of the change of the weights, by block)"
UNKNOWN_STRENGTH = Line(f"depends on the weights of its model, as for every DoRA: add {option('model')}")

STARTS = ("image", "mask", "control_image")  # pictures from which a picture may have been started

Models = Mapping[str, Mapping[str, ModuleShape]]  # name -> module -> shape


class Coverage(NamedTuple):
    """How many modules of a file have a place in a model."""

    model: str
    found: int
    total: int

    def __str__(self) -> str:
        share = self.found / self.total
        return f"{self.model}: {self.found} of {number_of(self.total, 'module')} ({100 * share:.0f} %)"


def inspect(config: InspectConfig) -> Result:
    """The facts about each file."""
    models, base = candidates(config.model)
    found = [
        of_picture(Path(text)) if names_picture(Path(text)) else of_lora(text, models, base) for text in config.files
    ]
    documents = [result.document for result in found]
    return Result(documents if len(found) > 1 else documents[0], "\n\n".join(result.text for result in found))


def names_picture(path: Path) -> bool:
    """Whether the file is a picture, or is missing and has the name of one."""
    return is_picture(path) or (path.suffix.lower() in SUFFIXES and not path.exists())


def of_picture(path: Path) -> Result:
    """The recipe in a picture, without the options that were not used."""
    recipe: dict[str, Any] = {"file": str(path), **read_recipe(path)}
    lines = {name.replace("_", " "): value for name, value in recipe.items() if value is not False}
    for name in STARTS:
        if start := recipe[name]:
            lines[name.replace("_", " ")] = f"{start.get('file', 'a picture')} (SHA-256 {start['sha256'][:12]}...)"
    loras = [f"{typed_lora(lora)} (SHA-256 {lora['sha256'][:12]}...)" for lora in recipe["lora"]]
    lines["lora"] = ", ".join(loras) or "none"
    lines["timesteps"] = ", ".join(map(str, recipe["timesteps"]))
    return Result(recipe, table({name: value for name, value in lines.items() if value not in (None, "")}))


def of_lora(text: str, models: Models, base: Base | None) -> Result:
    """The facts about a LoRA file."""
    facts = report(text, models, base)
    return Result(facts, as_text(facts))


def candidates(model: str | None) -> tuple[Models, Base | None]:
    """The modules and weights of the named model, or the modules of every family."""
    if model is not None:
        base, shapes = weights_of(model)
        return {model: shapes}, base
    return {name: family.all_modules() for name, family in FAMILIES.items()}, None


@doing("measuring the LoRA")
def report(text: str, models: Models, base: Base | None) -> dict[str, Any]:
    """All facts about one file, for JSON."""
    path = parse_reference(text).file
    file = open_lora(path)
    adapters = {name: file.factors(shapes) for name, shapes in models.items()}
    coverages = [coverage(adapters[name], name, shapes) for name, shapes in models.items()]
    fits = [c.model for c in coverages if c.found == c.total]
    best = max(coverages, key=lambda c: c.found)
    if len(fits) > 1:
        origin, _ = origin_of(fits, [(file, adapters[best.model].modules)])
        best = next(c for c in coverages if c.model == origin)
    adapter = adapters[best.model]
    whole = adapter
    if file.dora is not None:
        whole = file.adapter(models[best.model], base) if base and best.found == best.total else Adapter({})
    return {
        "file": text,
        "sha256": hash_of(path),
        "layout": file.layout,
        "dora": file.dora is not None,
        "fits": fits,
        "coverage": [c._asdict() for c in ([best] if fits else sorted(coverages, key=lambda c: -c.found)[:2])],
        "touched": f"{best.found} of {number_of(len(models[best.model]), 'module')} of {best.model}",
        **measured(adapter, whole),
        "sampling": sampling(file.recipe),
        "metadata": {key: value for key, value in adapter.metadata.items() if key in METADATA},
        "other_metadata": sorted(key for key in adapter.metadata if key not in METADATA and key != KEY),
    }


def coverage(adapter: Adapter, name: str, shapes: Mapping[str, ModuleShape]) -> Coverage:
    """The coverage of one file in one model."""
    total = len(adapter.modules)
    return Coverage(name, total - len(misfits(adapter, shapes)), total)


def measured(adapter: Adapter, whole: Adapter) -> dict[str, Any]:
    """Ranks, sizes and the strength of each block: the Frobenius norm of its Delta W.

    adapter: the factors in the file. whole: the updates of the weights. For a DoRA they depend on the base model too.
    """
    ranks: Counter[int] = Counter()
    squares: dict[str, float] = {}
    parameters = 0
    for name in adapter.modules:
        size = adapter.size(name)
        ranks[size.rank] += 1
        parameters += size.parameters
        if name in whole.modules:
            block = (*blocks_of(name), "other")[0]
            squares[block] = squares.get(block, 0.0) + square_of(whole.modules, name)
    return {
        "modules": len(adapter.modules),
        "ranks": {str(rank): count for rank, count in sorted(ranks.items())},
        "parameters": parameters,
        "strength": {block: square**0.5 for block, square in sorted(squares.items())},
    }


def sampling(recipe: Recipe | None) -> dict[str, Any]:
    """The recipe's entries about sampling; empty when the file has no recipe."""
    if recipe is None:
        return {}
    sampling = {name: getattr(recipe, name) for name in SAMPLING if getattr(recipe, name) not in (None, "")}
    base = base_name(recipe)
    if base and base != MODEL and recipe.base_sha256:
        base += f" (its UNet's SHA-256 begins with {recipe.base_sha256[:12]})"
    learnt_from = origin_in_words(recipe)
    return sampling | ({"base_model": base} if base else {}) | ({"learnt_from": learnt_from} if learnt_from else {})


def as_text(facts: Mapping[str, Any]) -> str:
    """The facts as lines of text for people."""
    covered = [Coverage(**c) for c in facts["coverage"]]
    strengths = [f"{block} {norm:.3g}" for block, norm in facts["strength"].items()]
    lines = {
        "file": facts["file"],
        "sha256": facts["sha256"],
        "layout": facts["layout"],
        "fits": ", ".join(facts["fits"]) or Line(f"no known family: add {option('model')}"),
        "coverage": "; ".join(map(str, covered)),
        "touched": facts["touched"],
        "parameters": f"{facts['parameters']:,} in {number_of(facts['modules'], 'module')}",
        "rank": ", ".join(f"{rank} ({number_of(count, 'module')})" for rank, count in facts["ranks"].items()),
        "strength": ", ".join(strengths) + STRENGTH if strengths else UNKNOWN_STRENGTH,
        "sampling": ", ".join(f"{name} {value}" for name, value in facts["sampling"].items()) or "unknown",
        **facts["metadata"],
    }
    if facts["other_metadata"]:
        lines["also says"] = ", ".join(facts["other_metadata"])
    return table(lines)


def table(lines: Mapping[str, object]) -> str:
    """Names and values, one per line."""
    width = max(map(len, lines))
    texts = {name: x.marked if isinstance(x, Line) else printable(str(x), READABLE) for name, x in lines.items()}
    return "\n".join(f"{name:<{width}}  {text}" for name, text in texts.items())
