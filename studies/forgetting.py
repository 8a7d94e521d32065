"""Write docs/forgetting.md, what subtracting a style LoRA does to the embedded model: `python -m studies.forgetting`.

A run measures one style; those of earlier runs stay on the page. No LoRA ships for a style that the model knows, so one
is trained. It and the pictures are kept under $FEWSTEP_CACHE, so an interrupted run continues where it stopped.
"""

import json
import random
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from fewstep.assets import MODEL, STYLES, shipped_model
from fewstep.cli import main_of
from fewstep.configs import Config, Device, Draw, FinetuneConfig, Modules, Precision, Solver, build
from fewstep.data.prompts import OF, Prompt, shipped_prompts
from fewstep.errors import FewstepError, UsageError
from fewstep.evaluate.candidates import LoraWeight
from fewstep.evaluate.prompts import styled_prompts
from fewstep.evaluate.report import text_table
from fewstep.io import cache_dir, read_json, sha256_bytes, write_bytes, write_json
from fewstep.metrics.estimate import Estimate
from fewstep.metrics.frechet import Statistics
from fewstep.metrics.reference import Reference
from fewstep.models.model import parts_sha256
from fewstep.training.run import finetune
from studies.lab import Lab, base_styles, drawings_of, take
from studies.pages import DOCS, template

ALLOWED = 0.05  # share by which the other styles may change
CERTAIN = 2  # standard errors; a larger change is certain
WIDTH = 120  # characters in the page's lines
TRAINING: dict[str, Any] = {  # config for the LoRA of a style that the model knows
    "rank": 16,
    "train_steps": 600,
    "batch_size": 16,
    "learning_rate": 1e-3,
    "warmup": 20,
    "decay": "cosine",
    "ema": 0.98,
    "drop_captions": 0.0,
    "precision": "bf16",
}
PROTOCOL = '{images} pictures a line, drawn with {how}. A prompt of the style is, for example, "{asked}".'
KNOWN = {  # whether the model knows the style without the LoRA -> a sentence of the page
    True: "The model knows this style.",
    False: "The model never saw this style in its own training; only the LoRA did. So a subtraction can only remove"
    " what the model's own styles have in common with it.",
}
SHIPPED = "The LoRA is the one that ships."
TRAINED = (
    "The LoRA is trained for the measurement: rank {rank}, {train_steps} steps of {batch_size} samples. It adapts"
    " {adapted}."
)
ADAPTED = {
    "all": "all that LCM-LoRA adapts",
    "transformer": "only the transformer blocks",
    "attention": "only attention",
    "cross-attention": "only the attention to the prompt",
}
PRIOR = (
    "For each drawing of the style, the training data have {prior:g} of other styles, with their own captions. So the"
    " LoRA learns not to change those: prior preservation (DreamBooth, arXiv 2208.12242)."
)
COLUMNS = ("prompts of", "model", "agreement %", "change, points", "distance", "change", "change, %")


class ForgettingConfig(Config):
    """Measure the pictures of W0 - w style, for prompts of the style and of the styles that should not change."""

    style: str = "twemoji"
    """The style that is subtracted: one the model knows, or high-contrast or noto-mono, whose LoRAs ship."""
    weights: tuple[float, ...] = (0.5, 1.0)
    """How much of it is subtracted."""
    prior: Annotated[float, Field(ge=0)] = 0.0
    """Other styles' drawings in the training of the LoRA, for each of the style's own: prior preservation."""
    images: Annotated[int, Field(ge=8)] = 64
    """Of each kind of prompts, the same prompts and noise for every model."""
    modules: Modules = "all"
    """What a LoRA trained for the measurement adapts."""
    solver: Solver = "auto"
    """How to draw: auto is dpm-solver++ without an acceleration."""
    steps: int | None = None
    """Network calls of one branch; by default the solver's usual ones."""
    lora: tuple[str, ...] = ()
    """Other LoRAs that every model has, such as lcm for pictures in four steps."""
    batch_size: int = 16
    """Pictures drawn at once."""
    dtype: Precision = "bf16"
    """Precision of the networks that draw."""
    device: Device = "auto"
    """Where to compute."""
    out: Path = DOCS / "forgetting.md"
    """The page; the figures stand beside it as .json."""


# --- the style ----------------------------------------------------------------------------------------------


def words_of(style: str) -> str:
    """The words for a style in prompts; empty if a shipped LoRA has it. Raises UsageError for an unknown style."""
    known = {str(prompt.style): prompt.text.partition(OF)[0] for prompt in shipped_prompts().prompts}
    known |= dict.fromkeys(STYLES, "")
    if style not in known:
        raise UsageError(f"unknown style {style}", f"known styles: {', '.join(known)}")
    return known[style]


def vector_of(config: ForgettingConfig) -> str:
    """The style's LoRA: the one that ships, or one that this or an earlier run trains on the style's drawings."""
    if ships(config.style, config.prior, config.modules):
        return config.style
    data, training = drawings(config.style, config.prior), TRAINING | {"modules": config.modules}
    model = shipped_model(MODEL)
    assert model is not None
    of = f"{parts_sha256(model)} {data.read_text(encoding='utf-8')} {json.dumps(training)}"
    out = cache_dir() / "forgetting" / sha256_bytes(of.encode())[:16]
    file = out / "lora.safetensors"
    if not file.is_file():
        finetune(build(FinetuneConfig, model=MODEL, data=data, out=out, device=config.device, resume=True, **training))
    return str(file)


def ships(style: str, prior: float, modules: Modules) -> bool:
    """Whether the style's LoRA ships."""
    return style in STYLES and not prior and modules == "all"


def drawings(style: str, prior: float) -> Path:
    """A table of the style's drawings in the emoji recipe's data set, and of `prior` others for each of them."""
    folder = cache_dir() / "emoji" / "images"
    if not (folder / "base.jsonl").is_file():
        raise FewstepError(f"{folder / 'base.jsonl'} not found", "run python -m recipes.emoji.dataset")
    base = lines_of(folder / "base.jsonl")
    own = lines_of(folder / f"{style}.jsonl") if style in STYLES else [line for line in base if style_of(line) == style]
    others = [line for line in base if style_of(line) != style]
    kept = random.Random(0).sample(others, min(round(prior * len(own)), len(others)))
    table = folder / f"forgetting-{style}-{prior:g}.jsonl"
    write_bytes(table, b"".join(own + kept))
    return table


def lines_of(table: Path) -> list[bytes]:
    """The lines of a .jsonl file, unchanged."""
    return table.read_bytes().splitlines(keepends=True)


def style_of(line: bytes) -> str:
    """The style of a line."""
    return str(json.loads(line)["style"])


# --- measuring ----------------------------------------------------------------------------------------------


class PromptKind(NamedTuple):
    """A kind of prompts, and the statistics of real drawings for it."""

    name: str
    prompts: tuple[Prompt, ...]
    target: Statistics


class KindMeasures(NamedTuple):
    """The measures of one kind of prompts, drawn by one model."""

    kind: str
    weight: float  # subtracted
    agreement: Estimate
    distance: Estimate


def kinds(config: ForgettingConfig, reference: Reference) -> list[PromptKind]:
    """Prompts of the style with its drawings, and prompts of the model's other styles with all drawings of those."""
    names = [name for name in base_styles() if name != config.style]
    others = [prompt for prompt in shipped_prompts().prompts if prompt.style in names]
    words = words_of(config.style)
    return [
        PromptKind(
            config.style,
            take(styled_prompts(config.style, words), config.images),
            drawings_of(reference, [config.style]),
        ),
        PromptKind(f"{len(names)} other styles", take(others, config.images), drawings_of(reference, names)),
    ]


def measured(config: ForgettingConfig, lab: Lab, vector: str, kind: PromptKind, weight: float) -> KindMeasures:
    """The measures of a kind of prompts, drawn by W0 - weight x style."""
    loras = (*((f"{vector}:{LoraWeight(-weight).text}",) if weight else ()), *config.lora)
    pictures = lab.draw([prompt.text for prompt in kind.prompts], lora=loras, title=f"{kind.name}, w = {weight:g}",
                     solver=config.solver, steps=config.steps)  # fmt: skip
    return KindMeasures(kind.name, weight, lab.agreement(pictures, kind.prompts), lab.distance(pictures, kind.target))


def run(config: ForgettingConfig) -> None:
    """Draw, measure, and write the page again with this style on it."""
    words = words_of(config.style)
    vector = vector_of(config)
    lab = Lab(config.device, config.dtype, config.batch_size)
    session, around = lab.session(lora=config.lora)
    plan = session.plan(build(Draw, prompts=("",), solver=config.solver, steps=config.steps))
    how = f"{plan.solver_name}, {plan.steps} steps, guidance {plan.guidance_scale:g}"
    results = [measured(config, lab, vector, kind, weight)
               for weight in (0.0, *config.weights) for kind in kinds(config, lab.reference)]  # fmt: skip
    style = {
        "style": config.style,
        "words": words,
        "images": config.images,
        "how": how + (f" and the LoRA {', '.join(config.lora)}" if config.lora else "") + f" in {config.dtype}",
        "model_sha256": around["model_sha256"],
        "known": config.style not in STYLES,
        "prior": config.prior,
        "modules": config.modules,
        "rows": [figures(one, results) for one in sorted(results, key=lambda one: one.kind != config.style)],
    }
    known = config.out.with_suffix(".json")
    document = read_json(known, "figures") if known.is_file() else {}
    document[title(style)] = style
    write_bytes(config.out, page(document).encode())
    write_json(known, document)
    print(section(style))


# --- figures and words --------------------------------------------------------------------------------------


def before(one: KindMeasures, results: Sequence[KindMeasures]) -> KindMeasures:
    """The measures of the same prompts, drawn by W0."""
    return next(other for other in results if other.kind == one.kind and other.weight == 0)


def figures(one: KindMeasures, results: Sequence[KindMeasures]) -> dict[str, Any]:
    """One row as data."""
    base = before(one, results)
    values = {
        "agreement": one.agreement,
        "agreement_change": one.agreement.less(base.agreement),
        "distance": one.distance,
        "distance_change": one.distance.less(base.distance),
        "distance_relative": one.distance.relative(base.distance),
    }
    return {"prompts_of": one.kind, "subtracted": one.weight} | {name: value.numbers for name, value in values.items()}


def cells(row: dict[str, Any]) -> list[str]:
    """One row as text."""

    def number(name: str, scale: float = 1) -> str:
        return f"{scale * row[name]['value']:.1f} ± {scale * row[name]['error']:.1f}"

    changed = [number("agreement_change", 100), number("distance_change"), number("distance_relative", 100)]
    points, change, percent = changed if row["subtracted"] else ("", "", "")
    model = f"W0 - {row['subtracted']:g} style" if row["subtracted"] else "W0"
    return [row["prompts_of"], model, number("agreement", 100), points, number("distance"), change, percent]


def verdicts(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The conclusions, one line for every weight."""
    weights = dict.fromkeys(row["subtracted"] for row in rows if row["subtracted"])
    lines = []
    for weight in weights:
        own, others = (row for row in rows if row["subtracted"] == weight)
        lines.append(f"* w = {weight:g}: {of_style(own)} {of_others(others)}")
    return lines


def of_style(row: dict[str, Any]) -> str:
    """The conclusion about the style: whether the model forgot it."""
    distance, agreement = row["distance_change"], row["agreement_change"]
    if distance["value"] > CERTAIN * distance["error"]:
        verdict = "the style's prompts are drawn less like the style, for certain"
    elif distance["value"] < -CERTAIN * distance["error"]:
        verdict = "the style's prompts are drawn more like the style, for certain"
    else:
        verdict = "the style's prompts are drawn as much like the style as before, within chance"
    if agreement["value"] == 0:
        return f"{verdict}; their agreement is the same."
    certain = abs(agreement["value"]) > CERTAIN * agreement["error"]
    fell = "fell" if agreement["value"] < 0 else "rose"
    return f"{verdict}; their agreement {fell}, " + ("for certain." if certain else "which may be chance.")


def of_others(row: dict[str, Any]) -> str:
    """The conclusion about the other styles: whether both measures stayed within ALLOWED."""
    shares = {"distance": (row["distance_relative"]["value"], row["distance_relative"]["error"])}
    if base := row["agreement"]["value"] - row["agreement_change"]["value"]:
        shares["agreement"] = row["agreement_change"]["value"] / base, row["agreement_change"]["error"] / base
    return "Other styles: " + "; ".join(within(name, *values) for name, values in shares.items()) + "."


def within(name: str, change: float, error: float) -> str:
    """A change in words, and whether it is certainly within ALLOWED, certainly not, or neither."""
    amount, allowed = f"{name} {100 * change:+.1f} ± {100 * error:.1f} %", f"{100 * ALLOWED:g} %"
    if abs(change) + CERTAIN * error <= ALLOWED:
        return f"{amount}, within {allowed}"
    if abs(change) - CERTAIN * error > ALLOWED:
        return f"{amount}, not within {allowed}"
    return f"{amount}, perhaps within {allowed}"


def title(style: dict[str, Any]) -> str:
    """The section's title."""
    of_modules = {"all": "", "transformer": ", transformer blocks"}.get(style["modules"], f", {style['modules']}")
    of_prior = f", with {style['prior']:g} of other styles" if style["prior"] else ""
    return f"{style['style']}{of_modules}{of_prior}"


def origin(style: dict[str, Any]) -> tuple[str, ...]:
    """The sentences about the LoRA's origin."""
    if ships(style["style"], style["prior"], style["modules"]):
        return (SHIPPED,)
    return (TRAINED, PRIOR) if style["prior"] else (TRAINED,)


def section(style: dict[str, Any]) -> str:
    """The page's section about one style."""
    about = PROTOCOL, KNOWN[style["known"]], *origin(style)
    asked, adapted = f"{style['words']} emoji of castle".strip(), ADAPTED[style["modules"]]
    protocol = " ".join(about).format(**TRAINING | style, asked=asked, adapted=adapted)
    return "\n".join([
        f"## {title(style)}",
        "",
        textwrap.fill(protocol, WIDTH),
        "",
        text_table(COLUMNS, [cells(row) for row in style["rows"]]),
        "",
        *verdicts(style["rows"]),
    ])  # fmt: skip


def page(document: dict[str, Any]) -> str:
    """The text of docs/forgetting.md."""
    text = template("forgetting")
    return text.format(sections="\n\n".join(map(section, document.values())), certain=CERTAIN)


if __name__ == "__main__":
    sys.exit(main_of(ForgettingConfig, run))
