"""Write docs/forgetting.md, what subtracting a style LoRA does to the embedded model: `python docs/forgetting.py`.

Pictures are kept under $FEWSTEP_CACHE as compare keeps its own, so an interrupted run goes on where it was.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from fewstep.assets import STYLE_WORDS
from fewstep.cli import main_of
from fewstep.configs import Config, Device, SampleConfig, Solver, build
from fewstep.errors import UsageError
from fewstep.evaluate.candidates import Weight
from fewstep.evaluate.estimate import Estimate
from fewstep.evaluate.frechet import Statistics
from fewstep.evaluate.lab import Lab, base_styles, drawings_of, take
from fewstep.evaluate.prompts import Prompt, shipped_prompts
from fewstep.evaluate.reference import Reference
from fewstep.evaluate.report import text_table
from fewstep.evaluate.tune import styled_prompts
from fewstep.io import write_bytes, write_json

ALLOWED = 0.05  # the others may change by this share
CERTAIN = 2  # standard errors
COLUMNS = ("prompts of", "model", "agreement %", "change, points", "distance", "change", "change, %")


class ForgettingConfig(Config):
    """Measure what W0 - w style draws: prompts of the style, and prompts of the styles that are to stay."""

    style: str = "noto-mono"
    """The style LoRA that is subtracted: high-contrast or noto-mono, which ship."""
    weights: tuple[float, ...] = (0.5, 1.0)
    """How much of it is subtracted."""
    images: Annotated[int, Field(ge=8)] = 64
    """Of each kind of prompts, the same prompts and noise for every model."""
    solver: Solver = "auto"
    """How to draw: auto is dpm-solver++ without an acceleration."""
    steps: int | None = None
    """Network calls of one branch; by default the solver's usual ones."""
    lora: tuple[str, ...] = ()
    """Other LoRAs that every model has, such as lcm for pictures in four steps."""
    batch_size: int = 16
    """Pictures drawn at once."""
    device: Device = "auto"
    """Where to compute."""
    out: Path = Path(__file__).with_name("forgetting.md")
    """The page; the figures stand beside it as .json."""


class Kind(NamedTuple):
    """Prompts, and what their pictures should be like."""

    name: str
    prompts: tuple[Prompt, ...]
    target: Statistics


class Measured(NamedTuple):
    """One kind of prompts, drawn by one model."""

    kind: str
    weight: float  # subtracted
    agreement: Estimate
    distance: Estimate


def kinds(config: ForgettingConfig, reference: Reference) -> list[Kind]:
    """Prompts of the style with the style's drawings, and those of the base styles with theirs, all together."""
    others, names = shipped_prompts().prompts, base_styles()
    return [
        Kind(config.style, take(styled_prompts(config.style), config.images), drawings_of(reference, [config.style])),
        Kind(f"{len(names)} other styles", take(others, config.images), drawings_of(reference, names)),
    ]


def measured(config: ForgettingConfig, lab: Lab, kind: Kind, weight: float) -> Measured:
    """The pictures of a kind of prompts by W0 - weight x style."""
    loras = (*((f"{config.style}:{Weight(-weight).text}",) if weight else ()), *config.lora)
    drawn = lab.draw([prompt.text for prompt in kind.prompts], lora=loras, title=f"{kind.name}, w = {weight:g}",
                     solver=config.solver, steps=config.steps)  # fmt: skip
    return Measured(kind.name, weight, lab.agreement(drawn, kind.prompts), lab.distance(drawn, kind.target))


def run(config: ForgettingConfig) -> None:
    """Draw, measure, write the page."""
    if config.style not in STYLE_WORDS:
        raise UsageError(f"{config.style} is no style that ships", f"those that do: {', '.join(STYLE_WORDS)}")
    lab = Lab(config.device, batch_size=config.batch_size)
    bare, around = lab.pipeline(lora=config.lora)
    plan = bare.plan(build(SampleConfig, prompts=("",), solver=config.solver, steps=config.steps, lora=config.lora))
    how = f"{plan.solver_name}, {plan.steps} steps, guidance {plan.guidance_scale:g}"
    results = [measured(config, lab, kind, weight)
               for kind in kinds(config, lab.reference) for weight in (0.0, *config.weights)]  # fmt: skip
    document = {
        "style": config.style,
        "images": config.images,
        "how": how + (f" and the LoRA {', '.join(config.lora)}" if config.lora else ""),
        "model_sha256": around["model_sha256"],
        "rows": [figures(one, results) for one in results],
    }
    write_bytes(config.out, page(document).encode())
    write_json(config.out.with_suffix(".json"), document)
    print(json.dumps(document, indent=2))


# --- figures and words --------------------------------------------------------------------------------------


def before(one: Measured, results: Sequence[Measured]) -> Measured:
    """The same prompts by W0."""
    return next(other for other in results if other.kind == one.kind and other.weight == 0)


def figures(one: Measured, results: Sequence[Measured]) -> dict[str, Any]:
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

    def said(name: str, scale: float = 1) -> str:
        return f"{scale * row[name]['value']:.1f} ± {scale * row[name]['error']:.1f}"

    changed = [said("agreement_change", 100), said("distance_change"), said("distance_relative", 100)]
    points, change, percent = changed if row["subtracted"] else ("", "", "")
    model = f"W0 - {row['subtracted']:g} style" if row["subtracted"] else "W0"
    return [row["prompts_of"], model, said("agreement", 100), points, said("distance"), change, percent]


def verdicts(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What is shown, and what is not, a line for every weight."""
    weights = dict.fromkeys(row["subtracted"] for row in rows if row["subtracted"])
    lines = []
    for weight in weights:
        own, others = (row for row in rows if row["subtracted"] == weight)
        lines.append(f"* w = {weight:g}: {of_style(own)} {of_others(others)}")
    return lines


def of_style(row: dict[str, Any]) -> str:
    """Whether the style was forgotten."""
    distance, agreement = row["distance_change"], row["agreement_change"]
    if distance["value"] > CERTAIN * distance["error"]:
        told = "the style's prompts are drawn less like the style, for certain"
    elif distance["value"] < -CERTAIN * distance["error"]:
        told = "the style's prompts are drawn more like the style, for certain"
    else:
        told = "no change in how like the style its prompts are drawn is told from chance"
    if agreement["value"] == 0:
        return f"{told}; their agreement is the same."
    certain = abs(agreement["value"]) > CERTAIN * agreement["error"]
    fell = "fell" if agreement["value"] < 0 else "rose"
    return f"{told}; their agreement {fell}, " + ("for certain." if certain else "by no more than chance may do.")


def of_others(row: dict[str, Any]) -> str:
    """Whether the others stayed within ALLOWED, by both measures."""
    shares = {"distance": (row["distance_relative"]["value"], row["distance_relative"]["error"])}
    if base := row["agreement"]["value"] - row["agreement_change"]["value"]:
        shares["agreement"] = row["agreement_change"]["value"] / base, row["agreement_change"]["error"] / base
    return "Of the others: " + "; ".join(within(name, *values) for name, values in shares.items()) + "."


def within(name: str, change: float, error: float) -> str:
    """Whether a change is within ALLOWED, for certain or at all."""
    amount, allowed = f"{name} {100 * change:+.1f} ± {100 * error:.1f} %", f"{100 * ALLOWED:g} %"
    if abs(change) + CERTAIN * error <= ALLOWED:
        return f"{amount}, within {allowed}"
    if abs(change) - CERTAIN * error > ALLOWED:
        return f"{amount}, not within {allowed}"
    return f"{amount}, whether within {allowed} is not decided"


def page(document: dict[str, Any]) -> str:
    """docs/forgetting.md."""
    text = Path(__file__).with_name("forgetting.txt").read_text(encoding="utf-8")
    return text.format(
        **{name: document[name] for name in ("style", "images", "how")},
        words=STYLE_WORDS[document["style"]],
        table=text_table(COLUMNS, [cells(row) for row in document["rows"]]),
        verdicts="\n".join(verdicts(document["rows"])),
        certain=CERTAIN,
    )


if __name__ == "__main__":
    sys.exit(main_of(ForgettingConfig, run))
