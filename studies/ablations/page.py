"""The words of docs/ablations.md: tables, and sentences that follow from the figures."""

import textwrap
from collections.abc import Sequence
from typing import Any

from fewstep.evaluate.report import text_table
from studies.ablations.groups import BASE, Group, all_groups
from studies.ablations.measures import CERTAIN, MEASURES, STEPS, TEACHER_STEPS, certain
from studies.pages import template

CHANCE = 0.0455  # of a difference of nothing to be larger than that


def change_text(name: str, change: dict[str, float]) -> str:
    """A change with its error, in bold print if it is certain."""
    _, scale, digits, _ = MEASURES[name]
    text = f"{scale * change['value']:+z.{digits}f} ± {scale * change['error']:.{digits}f}"
    return f"**{text}**" if certain(change) else text


def value_text(name: str, value: dict[str, float]) -> str:
    """A measure; with its error only for agreement, whose noise is most of it."""
    _, scale, digits, _ = MEASURES[name]
    text = f"{scale * value['value']:.{digits}f}"
    return f"{text} ± {scale * value['error']:.{digits}f}" if name == "agreement" else text


def figure_cells(at: dict[str, Any]) -> list[str]:
    """The cells of all measures, each with its change."""
    changes = at.get("change")
    pairs = [(value_text(name, at[name]), change_text(name, changes[name]) if changes else "") for name in MEASURES]
    return [cell for pair in pairs for cell in pair]


def columns(first: str, *more: str) -> list[str]:
    """Titles of `figure_cells`, and of what stands around it."""
    return [first, *(title for measure in MEASURES.values() for title in (measure.title, "change")), *more]


def main_table(runs: Sequence[dict[str, Any]]) -> str:
    """The runs at STEPS steps, with training time, and sizes if they differ."""
    sizes = len({round(run["bytes"], -4) for run in runs}) > 1
    rows = [
        [run["name"], *figure_cells(run["at"][0]), f"{run['time']:.2f}", *([f"{run['bytes'] / 1e6:.2f}"] * sizes)]
        for run in runs
    ]
    return text_table(columns("run", "time", *(["file, MB"] * sizes)), rows)


def steps_table(runs: Sequence[dict[str, Any]]) -> str:
    """The runs at other numbers of steps; empty if there are none."""
    rows = [
        [f"{steps} step{'s' * (steps > 1)}: {run['name']}", *figure_cells(at)]
        for number in range(1, len(runs[0]["at"]))
        for run in runs
        for at in [run["at"][number]]
        for steps in [at["steps"]]
    ]
    return text_table(columns("run"), rows) if rows else ""


def verdict(name: str, runs: Sequence[dict[str, Any]]) -> str:
    """By one measure: which run is best, and which are told apart from the base, in a sentence."""
    measure, sign = MEASURES[name], MEASURES[name].better
    base, others = runs[0]["name"], runs[1:]
    top = max(sign * run["at"][0][name]["value"] for run in runs)
    best = [run["name"] for run in runs if sign * run["at"][0][name]["value"] == top]
    changes = {run["name"]: run["at"][0]["change"][name] for run in others}
    certain_changes = {run: sign * change["value"] for run, change in changes.items() if certain(change)}
    kinds = {
        f"better than {base}": [run for run, change in certain_changes.items() if change > 0],
        f"worse than {base}": [run for run, change in certain_changes.items() if change < 0],
        f"not told apart from {base}": [run for run in changes if run not in certain_changes],
    }
    sentences = [f"{kind}: {listed(names)}" for kind, names in kinds.items() if names]
    return f"* {measure.title.removesuffix(' %')}: best {'are' if len(best) > 1 else 'is'} {listed(best)}; " + (
        "; ".join(sentences) + "."
    )


def listed(names: Sequence[str]) -> str:
    """Names, each as code, since some hold commas."""
    return ", ".join(f"`{name}`" for name in names)


def pair_text(pair: dict[str, Any]) -> str:
    """Two runs compared, in a sentence."""
    changes = [f"{MEASURES[name].title} {change_text(name, change)}" for name, change in pair["change"].items()]
    return f"* `{pair['run']}` beside `{pair['beside']}`: {', '.join(changes)}."


def section(name: str, found: dict[str, Any], group: Group) -> str:
    """A group's part of the page."""
    runs = found["runs"]
    sentences = [verdict(measure, runs) for measure in MEASURES if MEASURES[measure].better and len(runs) > 1]
    sentences += [pair_text(pair) for pair in found["pairs"]]
    sentences += [f"* Left out, because training failed: {listed(found['failed'])}."] if found["failed"] else []
    parts = [
        f"## {group.title}",
        textwrap.fill(group.text, 120),
        main_table(runs),
        "\n".join(sentences),
        steps_table(runs),
    ]
    parts.append(f"![{group.title}: each run's pictures from the same noise](pictures/ablations-{name}.jpg)")
    return "\n\n".join(part for part in parts if part)


def references(document: dict[str, Any]) -> str:
    """What lies at the two ends: the teacher's many steps, and the sampler's few without distillation."""
    guidance = BASE["guidance_scale"]
    rows = {f"teacher: DDIM, {TEACHER_STEPS} steps, guidance {guidance:g}": document["teacher"],
            f"not distilled: LCM's sampler, {STEPS} steps": document["not_distilled"]}  # fmt: skip
    titles = ["model", *(measure.title for measure in MEASURES.values())]
    return text_table(titles, [[name, *(value_text(m, row[m]) for m in MEASURES)] for name, row in rows.items()])


def by_chance(document: dict[str, Any]) -> str:
    """How many of the page's differences would be called certain if there were none."""
    ats = [at for group in document["groups"].values() for run in group["runs"] for at in run["at"] if "change" in at]
    count = len(ats) * len(MEASURES)
    marked = sum(certain(at["change"][name]) for at in ats for name in MEASURES)
    return f"{marked} of {count} are; of {count} differences of nothing, about {count * CHANCE:.0f} would be"


def by_seed(document: dict[str, Any]) -> str:
    """How far other seeds alone move each measure; a paragraph, or nothing without the group."""
    runs = document["groups"].get("seed", {"runs": []})["runs"][1:]
    if not runs:
        return ""
    largest = {
        name: max((run["at"][0]["change"][name] for run in runs), key=lambda change: abs(change["value"]))
        for name in MEASURES
    }
    moved = [
        f"{MEASURES[name].title} by {MEASURES[name].scale * abs(change['value']):.{MEASURES[name].digits}f}"
        for name, change in largest.items()
    ]
    return (
        f"\nAnother seed of the base run alone moved {', '.join(moved)} at most (the last table): what is smaller than"
        " that may be the seed's doing, whatever its error.\n"
    )


def page(document: dict[str, Any]) -> str:
    """docs/ablations.md."""
    groups = all_groups(document["train_steps"], long=True)
    text = template("ablations")
    styleless = document["styleless"]
    base = {name: BASE[name] for name in ("rank", "guidance_scale", "psi", "k", "target_decay", "huber_c")}
    sentences = {
        "captions": f", one in {styleless} told by what it shows alone" if styleless else "",
        "certain": CERTAIN,
        "steps": STEPS,
        "references": references(document),
        "by_chance": by_chance(document),
        "by_seed": by_seed(document),
        "at_a_time": f"{document['processes']} at a time, of one thread",
        "sections": "\n\n".join(section(name, found, groups[name]) for name, found in document["groups"].items()),
    }
    return text.format(**document | base | sentences)
