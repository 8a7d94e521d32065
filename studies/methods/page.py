"""The words of docs/methods.md; `python -m studies.methods.page` writes it anew from the figures that are there."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fewstep.errors import number_of
from fewstep.evaluate.report import text_table
from fewstep.io import read_json, write_bytes
from fewstep.metrics.estimate import Estimate
from studies.bench import TEACHER_STEPS
from studies.methods.measures import PLAIN, STEPS
from studies.methods.students import EIGHT, EMBEDDED, FOUR, FREE, GUIDANCE, LCD, LORA, SCALES, SYNTHETIC
from studies.negative_prompts import NEGATIVE
from studies.pages import DOCS, paragraph, template
from studies.results.verdicts import Figure, at_least, at_most, line

Figures = Mapping[str, Any]
SHARE = 0.1  # of the undistilled row's KID-T, by which a student without images may be farther off
JUDGED = 4  # steps that verdicts are of


def found(row: Figures, name: str) -> Estimate:
    """A measure of a row."""
    return Estimate(row[name]["value"], tuple(row[name]["without"]), row[name]["least"])


def figure(estimate: Estimate) -> Figure:
    """The number with its interval."""
    return Figure(estimate.value, *estimate.interval())


def table(document: Figures, name: str, scale: float, form: str) -> str:
    """A measure of every student, by steps."""
    titles = ["student", "guidance", *(number_of(steps, "step") for steps in STEPS)]
    rows: dict[tuple[str, float], list[str]] = {}
    for row in document["rows"]:
        cells = rows.setdefault((row["student"], row["guidance_scale"]), [])
        cells.append(figure(found(row, name)).text(form, scale))
    return text_table(titles, [[student, f"{guidance:g}", *cells] for (student, guidance), cells in rows.items()])


def row_of(document: Figures, student: str, steps: int, scale: float | None = None) -> Figures | None:
    """The student's row in so many steps, at its first scale or that one; None if it was not measured."""
    rows = (row for row in document["rows"] if row["student"] == student and row["steps"] == steps)
    return next((row for row in rows if scale in (None, row["guidance_scale"])), None)


def difference(row: Figures, other: Figures, name: str, share: float = 1) -> Estimate:
    """A measure less a share of another row's, paired."""
    base = found(other, name)
    return found(row, name).less(Estimate(share * base.value, tuple(share * one for one in base.without), base.least))


def phased(document: Figures) -> list[str]:
    """Whether PCM's pictures become worse in 8 steps than they are in 4."""
    lines = []
    for name in (student.name for student in (FOUR, EIGHT, FREE)):
        few, many = (row_of(document, name, steps) for steps in (JUDGED, STEPS[-1]))
        if few and many:
            kid_t, agreement = (figure(difference(many, few, measure)) for measure in ("kid_t", "agreement"))
            nearer = f"{name}, is at least as near to the teacher in {STEPS[-1]} steps as in {JUDGED}"
            lines.append(line(at_most(kid_t, 0), nearer, f"KID-T x 1000 changes by {kid_t.text('+.1f', 1000)}"))
            agrees = f"{name}, agrees at least as often in {STEPS[-1]} steps as in {JUDGED}"
            lines.append(line(at_least(agreement, 0), agrees, f"by {agreement.text('+.1f', 100)} points"))
    return lines


def without_images(document: Figures) -> list[str]:
    """Whether a student of the teacher's own pictures is as good as one of drawings."""
    own, drawings, plain = (row_of(document, name, JUDGED) for name in (SYNTHETIC.name, LCD.name, PLAIN))
    if not (own and drawings and plain):
        return []
    more, bar = difference(own, drawings, "kid_t"), found(plain, "kid_t")
    beyond = figure(more.less(Estimate(SHARE * bar.value, tuple(SHARE * one for one in bar.without))))
    claim = f"{SYNTHETIC.name}, is farther from the teacher than LCD by at most {SHARE:.0%} of the undistilled KID-T"
    text = f"KID-T x 1000 is larger by {figure(more).text('.1f', 1000)}; less the {SHARE:.0%} that is"
    return [line(at_most(beyond, 0), claim, f"{text} {beyond.text('.1f', 1000)}")]


def negative(document: Figures) -> list[str]:
    """Whether a negative prompt lowers what it names."""
    if not document["redness"]:
        return []
    without, with_it, change = (Figure(*document["redness"][name]) for name in ("without", "with", "change"))
    claim = f"{FREE.name}, draws red things less red with the negative prompt “{NEGATIVE}”"
    text = f"redness {with_it.text()} in place of {without.text()}, which is {change.text('+.2f')}"
    return [line(at_most(change, 0), claim, text)]


def learnt(document: Figures) -> list[str]:
    """What the figures say, in a few sentences."""
    named: list[tuple[str, Figures | None]] = [(name, row_of(document, name, JUDGED)) for name in (LCD.name, FOUR.name)]
    named.append((f"{EMBEDDED.name} at scale {GUIDANCE:g}", row_of(document, EMBEDDED.name, JUDGED, GUIDANCE)))
    values = [f"{text_of(row)} for {name}" for name, row in named if row]
    plain = row_of(document, PLAIN, JUDGED)
    lines = [f"In {JUDGED} steps KID-T x 1000 is {'; '.join([*values, f'{text_of(plain)} {PLAIN}'])}."] if plain else []
    scales = [(scale, row_of(document, EMBEDDED.name, JUDGED, scale)) for scale in SCALES]
    shares = [f"{found(row, 'agreement').value:.0%} at {scale:g}" for scale, row in scales if row]
    if shares:
        lines.append(
            f"One full LCM serves every guidance scale at one network row a step: its agreement is {', '.join(shares)}."
        )
    return lines


def text_of(row: Figures) -> str:
    """A row's KID-T."""
    return figure(found(row, "kid_t")).text(".1f", 1000)


def page(document: Figures) -> str:
    """docs/methods.md."""
    if not document["rows"]:
        return "# Methods of distillation, from equal training\n\nNot measured yet: `python -m studies.methods` does.\n"
    parts: Sequence[Callable[[Figures], list[str]]] = (phased, without_images, negative)
    styleless = document["styleless"]
    words = {
        "learnt": paragraph(learnt(document)),
        "kid_t": table(document, "kid_t", 1000, ".1f"),
        "agreement": table(document, "agreement", 100, ".0f"),
        "teachers": ", ".join(f"{value:.0%} at guidance {scale}" for scale, value in document["teachers"].items()),
        "verdicts": "\n".join(one for part in parts for one in part(document)),
        "captions": f", one in {styleless} captioned by its name alone" if styleless else "",
        "rank": LORA["rank"],
        "guidance": GUIDANCE,
        "k": LORA["k"],
        "scales": ", ".join(f"{scale:g}" for scale in SCALES),
        "plain": PLAIN.capitalize(),
        "teacher_steps": TEACHER_STEPS,
        "speeds": f"{min(document['images_per_s'].values()):.0f} to {max(document['images_per_s'].values()):.0f}",
    }
    return template("methods").format(**{**document, **words})


if __name__ == "__main__":
    write_bytes(DOCS / "methods.md", page(read_json(DOCS / "methods.json", "figures")).encode())
