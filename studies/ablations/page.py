"""The words of docs/ablations.md; `python -m studies.ablations.page` writes it anew from the figures that are there."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.configs import option_name
from fewstep.evaluate.report import text_table
from fewstep.io import read_json, write_bytes
from fewstep.metrics.estimate import CONFIDENCE
from studies.ablations.arms import BASE
from studies.ablations.measures import FEWER, MEASURES, STEPS
from studies.bench import TEACHER_STEPS
from studies.pages import DOCS, paragraph, template

Figures = Mapping[str, Any]
JUDGES = ("kid_t", "agreement")  # what an arm is called better or worse by
PUBLISHED = "online target, guidance drawn, 6 to 16"
SMALL = ("loss", "psi", "focus", "weighting")  # groups of the earlier measurement that moved little


def mean_of(arm: Figures, name: str) -> float:
    """Over seeds."""
    values = [run[name] for run in arm["runs"]]
    return float(sum(values)) / len(values)


def value_text(name: str, value: float) -> str:
    """A measure."""
    return f"{MEASURES[name].scale * value:z.{MEASURES[name].digits}f}"


def change_text(name: str, change: Figures) -> str:
    """A change with its margin, in bold print if seeds alone hardly do as much."""
    scale, digits = MEASURES[name].scale, MEASURES[name].digits
    text = f"{scale * change['value']:+z.{digits}f} ± {scale * change['margin']:.{digits}f}"
    return f"**{text}**" if is_certain(change) else text


def is_certain(change: Figures) -> bool:
    """Whether the interval leaves out 0."""
    return bool(abs(change["value"]) > change["margin"])


def table(document: Figures) -> str:
    """The arms, and below them the two ends: the teachers, and the sampler without distillation."""
    titles = ["arm", *(title for m in MEASURES.values() for title in (m.title, "change")), "time"]
    rows = [
        [
            arm["name"],
            *(cell for name in MEASURES for cell in cells(arm, name)),
            f"{arm['time']:.1f}",
        ]
        for arm in document["arms"]
    ]
    rows += [[f"teacher, guidance {scale}", *ends(figures)] for scale, figures in document["teachers"].items()]
    return text_table(titles, [*rows, ["not distilled, LCM's sampler", *ends(document["not_distilled"])]])


def cells(arm: Figures, name: str) -> tuple[str, str]:
    """Of one measure: its mean, and the change."""
    found = arm["change"].get(name)
    return value_text(name, mean_of(arm, name)), change_text(name, found) if found else ""


def ends(figures: Figures) -> list[str]:
    """The cells of what was not trained."""
    values = [value_text(name, figures[name]) if name in figures else "" for name in MEASURES]
    return [*(cell for value in values for cell in (value, "")), ""]


def learnt(document: Figures) -> list[str]:
    """What the figures decide, in a few sentences."""
    base, *others = document["arms"]
    spread = {name: value_text(name, spread_of(base, name)) for name in JUDGES}
    lines = [
        f"Other seeds of one and the same training move KID-T x 1000 by {spread['kid_t']} and agreement by"
        f" {spread['agreement']} points."
    ]
    lines += [by_measure(name, others) for name in JUDGES]
    alike = [arm["name"] for arm in others if not any(is_certain(arm["change"][name]) for name in MEASURES)]
    if alike:
        lines.append(f"By no measure can {listed(alike)} be told from the base.")
    return [*lines, *published(others)]


def spread_of(arm: Figures, name: str) -> float:
    """The largest less the smallest of its seeds."""
    values = [run[name] for run in arm["runs"]]
    return float(max(values) - min(values))


def by_measure(name: str, others: Sequence[Figures]) -> str:
    """Which arms are better than the base and which are worse, in a sentence."""
    title = MEASURES[name].title.split(" ")[0]
    signs = {arm["name"]: MEASURES[name].better * arm["change"][name]["value"] for arm in others
             if is_certain(arm["change"][name])}  # fmt: skip
    better, worse = ([arm for arm, sign in signs.items() if sign * way > 0] for way in (1, -1))
    if not signs:
        return f"By {title}, no arm differs from the base by more than seeds do."
    parts = [f"{listed(names)} {'are' if len(names) > 1 else 'is'} {word} than the base"
             for word, names in (("better", better), ("worse", worse)) if names]  # fmt: skip
    return f"By {title}, {', and '.join(parts)}."


def published(others: Sequence[Figures]) -> list[str]:
    """How the published script's two choices do, of its own guidance's teacher."""
    found = [arm for arm in others if arm["name"] == PUBLISHED]
    if not found:
        return []
    kid_t, agreement, sharpness = (value_text(name, mean_of(found[0], name)) for name in (*JUDGES, "sharpness"))
    return [
        f"The published script's two choices, beside the teacher at their guidance, have a KID-T x 1000 of {kid_t}, an"
        f" agreement of {agreement} % and {sharpness} of that teacher's sharpness."
    ]


def listed(names: Sequence[str]) -> str:
    """Names, each in quotes, since some hold commas."""
    quoted = [f"“{name}”" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def earlier() -> str:
    """What an earlier measurement found of choices that are not tried again."""
    kept = json.loads(Path(__file__).with_name("earlier.json").read_text(encoding="utf-8"))
    moved = {group: largest(runs) for group, runs in kept.items()}
    small = max(abs(moved[group]) for group in SMALL)
    return paragraph([
        "An earlier measurement, of one seed at learning rate 1e-3, tried other choices.",
        f"There another seed moved agreement by {100 * abs(moved['seed']):.1f} points.",
        "The loss and its width, other solvers as Psi, `--focus` and `--weighting` moved it by at most"
        f" {100 * small:.1f}, no more than a seed.",
        f"`--grid quadratic` moved it by {100 * moved['grid']:+.1f} and `--full` by {100 * moved['rank']:+.1f}.",
        f"At that rate the online target fell apart: its agreement was {100 * kept['target']['student']:.0f} %.",
    ])  # fmt: skip


def largest(runs: Mapping[str, float]) -> float:
    """The largest change from the first run."""
    base, *others = runs.values()
    return max((value - base for value in others), key=abs)


def sizes(arms: Sequence[Figures]) -> str:
    """The files of the ranks that there are."""
    found = {str(BASE["rank"]): arms[0]["bytes"]}
    found |= {arm["name"].removeprefix("rank "): arm["bytes"] for arm in arms if arm["name"].startswith("rank ")}
    return ", ".join(f"{found[rank] / 1e6:.1f} MB at rank {rank}" for rank in sorted(found, key=int))


def options() -> str:
    """The base's, as they are typed."""
    texts = [f"{option_name(name)} {value:g}" if isinstance(value, float) else f"{option_name(name)} {value}"
             for name, value in BASE.items()]  # fmt: skip
    half = len(texts) // 2
    return "\n".join(f"    {' '.join(part)}" for part in (["--method lcd", *texts[:half]], texts[half:]))


def page(document: Figures) -> str:
    """docs/ablations.md."""
    if not document["arms"]:
        return (
            "# Ablations of the distillation\n\nNot measured yet: `python -m studies.ablations --processes 2` does.\n"
        )
    count = sum(len(arm["change"]) for arm in document["arms"])
    styleless = document["styleless"]
    words = {
        "learnt": paragraph(learnt(document)),
        "table": table(document),
        "options": options(),
        "sizes": sizes(document["arms"]),
        "earlier": earlier(),
        "captions": f", one in {styleless} captioned by its name alone" if styleless else "",
        "steps": STEPS,
        "fewer": FEWER,
        "teacher_steps": TEACHER_STEPS,
        "count": count,
        "chance": count * (1 - CONFIDENCE),
    }
    return template("ablations").format(**{**document, **words})


if __name__ == "__main__":
    write_bytes(DOCS / "ablations.md", page(read_json(DOCS / "ablations.json", "figures")).encode())
