"""Limit 2: how smooth the way is between two noises, and between two prompts."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.data.prompts import Prompt
from fewstep.diffusion.guidance import Conditioning
from fewstep.diffusion.sampler import ImageNoise
from fewstep.evaluate.report import text_table
from fewstep.evaluate.row_pictures import RowPictures
from fewstep.metrics.estimate import Estimate, estimate
from fewstep.session import Session
from fewstep.sheets import SheetRow, grid
from studies.lab import Given, Lab, embedded, names, take
from studies.limits.bench import STUDENT, TINY, Bench, Measured, Way, lcm, options_of, with_changes
from studies.limits.words import Figures, change_text, code, picture, row_of, value_text

WAYS = (Way("dpm-solver++", 20), lcm(1), lcm(4), lcm(8))
POINTS = 16  # of a path
STRIP = 56  # pixels of a picture of a path's sheet


def ratio_of_sums(above: Tensor, below: Tensor) -> Estimate:
    """sum above / sum below, (P,) each, which no single small `below` can make large."""
    return estimate(lambda some: float(above[some].sum() / below[some].sum().clamp(min=TINY)), len(above))


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Points (N, *) on the arc from a to b (*) at t (N,) in [0, 1]; their norms go evenly from a's to b's."""
    t, (length_a, length_b) = t.double().view(-1, *[1] * a.dim()), (x.double().norm() for x in (a, b))
    unit_a, unit_b = a.double() / length_a, b.double() / length_b
    angle = torch.arccos((unit_a * unit_b).sum().clamp(-1, 1))
    if angle < 1e-6:
        return torch.lerp(a.double(), b.double(), t).to(a)
    arc = (torch.sin((1 - t) * angle) * unit_a + torch.sin(t * angle) * unit_b) / torch.sin(angle)
    points: Tensor = torch.lerp(length_a, length_b, t) * arc
    return points.to(a)


def between(a: Conditioning, b: Conditioning, t: Tensor) -> Conditioning:
    """Conditionings on the straight line from a to b, of one picture each, at t (N,)."""
    parts = zip(a, b, strict=True)
    return Conditioning(
        *(None if x is None or y is None else torch.lerp(x, y, t.view(-1, *[1] * (x.dim() - 1)).to(x))
          for x, y in parts)  # type: ignore[arg-type]
    )  # fmt: skip


def smooth(bench: Bench) -> Measured:
    """How far pictures go on their way between two noises, and between two prompts."""
    lab, rows, strips = bench.exact, [], []
    prompts = take(names(), 2 * bench.paths)
    for kind, points in (("noises", noise_path), ("prompts", prompt_path)):
        teacher: Roughness | None = None
        for way in WAYS:
            session = lab.session(lora=way.lora)[0]
            given = [points(session, prompts, path) for path in range(bench.paths)]
            pictures = lab.paint(given, lora=way.lora, **options_of(way))
            values = roughness(lab, pictures)
            teacher = teacher or values
            rows.append({
                "between": kind,
                "drawn_with": way.name,
                "ends": values.ends.numbers,
                **with_changes(("length", "jump"), values[1:], teacher[1:]),
            })  # fmt: skip
            strips.append(SheetRow(way.name, f"between two {kind}", pictures.first(POINTS)))
    figures = {"teacher": WAYS[0].name, "student": STUDENT.name, "paths": bench.paths, "points": POINTS, "rows": rows}
    return Measured(figures, {"paths": grid(strips, [""] * POINTS, STRIP)})


def noise_path(session: Session, prompts: Sequence[Prompt], path: int) -> Given:
    """One prompt, from the noise of one seed to that of the next; fresh noise is always the first seed's."""
    shape, seed = session.facts.latent_shape(session.facts.size, session.facts.size), 2 * path
    a, b = ImageNoise((seed, seed + 1), shape)()
    conditioning = embedded(session, [prompts[seed].text]).expand(POINTS)
    return Given(conditioning, slerp(a, b, torch.linspace(0, 1, POINTS)), (seed,) * POINTS)


def prompt_path(session: Session, prompts: Sequence[Prompt], path: int) -> Given:
    """One noise, on a straight line from what one prompt tells the network to what the next one does."""
    shape, seed = session.facts.latent_shape(session.facts.size, session.facts.size), 2 * path
    a, b = (embedded(session, [prompt.text]) for prompt in prompts[seed : seed + 2])
    noise = ImageNoise((seed,), shape)().expand(POINTS, *shape)
    return Given(between(a, b, torch.linspace(0, 1, POINTS)), noise, (seed,) * POINTS)


class Roughness(NamedTuple):
    """Of paths, by the root of LPIPS, which is a squared distance of features: that adds up along a line."""

    ends: Estimate  # LPIPS itself of a path's ends, the mean
    length: Estimate  # over the distance of the ends
    jump: Estimate  # the largest step over the mean one


def roughness(lab: Lab, pictures: RowPictures) -> Roughness:
    """Of all paths together, a batch each."""
    steps, ends = [], []
    for path in pictures.batches():
        steps.append(lab.between(path[:-1], path[1:]).double().sqrt())
        ends.append(lab.between(path[:1], path[-1:]).double().sqrt())
    every, apart = torch.stack(steps), torch.cat(ends)  # (P, N - 1), (P,)
    return Roughness(
        estimate(lambda paths: float(apart[paths].square().mean()), len(apart)),
        ratio_of_sums(every.sum(dim=1), apart),
        ratio_of_sums(every.amax(dim=1), every.mean(dim=1)),
    )


def smooth_text(section: Figures) -> str:
    """Paths."""
    titles = ("between", "drawn with", "length of the path", "less the teacher's", "largest jump", "less the teacher's")
    table = text_table(titles, [
        [f"two {row['between']}", code(row), *(cell for key in ("length", "jump") for cell in cells(row, key, section))]
        for row in section["rows"]
    ])  # fmt: skip
    strip = picture("paths", f"{section['points']} pictures on the way between two noises and between two prompts")
    return f"{table}\n\n{strip}"


def cells(row: Figures, key: str, section: Figures) -> tuple[str, str]:
    """A value and its change, which the teacher's own row has not."""
    own = row["drawn_with"] == section["teacher"]
    return value_text(row[key], digits=2), "" if own else change_text(row[f"{key}_change"], digits=2)


def smooth_verdict(section: Figures) -> tuple[str, str]:
    """What was measured, and what came out."""
    row = row_of(section, section["student"])
    return (
        f"largest jump on the way between two noises, `{section['student']}` less the teacher",
        f"{change_text(row['jump_change'], digits=2)} mean steps",
    )
