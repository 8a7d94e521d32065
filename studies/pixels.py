"""Write docs/pixel-space.md, about consistency models in pixel space: `python -m studies.pixels`.

It measures the models that recipes.emoji.pixels has trained, which runs it too.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from PIL import Image
from pydantic import Field
from torch import Tensor

from fewstep.cli import main_of
from fewstep.configs import Config, Device, Draw, build
from fewstep.data.sources import Sample, list_samples
from fewstep.errors import number_of
from fewstep.evaluate.protocol import machine
from fewstep.evaluate.report import text_table
from fewstep.evaluate.row_pictures import RowPictures, draw
from fewstep.images import read_image, to_image
from fewstep.io import cache_dir, read_json, write_bytes, write_json
from fewstep.metrics.features import features_of, read_real
from fewstep.metrics.kid import KID, kid
from fewstep.metrics.networks import Inception, load_inception
from fewstep.models.load import pick_device
from fewstep.models.model import parts_sha256
from fewstep.session import Session
from fewstep.sheets import SheetRow, grid, small_jpeg
from studies.pages import DOCS, paragraph, template

BATCH = 32
ACROSS, CELL, LARGEST = 12, 64, 150_000  # pictures in a row of the sheet, their pixels there, bytes of its file
PICTURE = "pictures/pixel-space.jpg"
MADE = (
    "The recipe `python -m recipes.emoji.pixels` makes the models and this page, in about an hour on two cores.",
    "`--share` makes it shorter.",
)
LABELS = {"teacher": "teacher", "cd": "CD", "ct": "CT"}


class PixelStudyConfig(Config):
    """Measure a teacher and two few-step students in pixel space, and write the page about them."""

    models: Path = cache_dir() / "emoji" / "pixels"
    """The folder with the results of the trainings: teacher/model, cd/model and ct/model."""
    data: Path = cache_dir() / "emoji" / "images" / "pixels-smileys-emotion.jsonl"
    """The drawings that the models were trained on."""
    share: Annotated[float, Field(gt=0)] = 1.0
    """Share of the recipe's steps with which the models were trained; the page tells it."""
    images: Annotated[int, Field(ge=40)] = 256
    """Pictures of each row."""
    drawings: Annotated[int, Field(ge=20)] = 1000
    """The most drawings that they are compared with, spread over all."""
    device: Device = "auto"
    """Where to compute."""
    out: Path = DOCS / "pixel-space.md"
    """The page; its figures are written next to it as .json, its picture to pictures/."""


class Way(NamedTuple):
    """A row: a model, and how it draws."""

    model: str
    solver: str
    steps: int


WAYS = (
    Way("teacher", "ddim", 50),
    *(Way("teacher", "ddim", steps) for steps in (4, 2, 1)),
    *(Way(name, "lcm", steps) for name in ("cd", "ct") for steps in (4, 2, 1)),
)


def run(config: PixelStudyConfig) -> None:
    """Measure, print the table, write the page, its figures and its picture."""
    device = pick_device(config.device)
    inception, samples = load_inception(device), list_samples(config.data, captioned=False).samples
    rows = draw_ways(config)
    real = read_real(spread(samples, config.drawings), str(config.data), size_of(config), inception)
    document: dict[str, Any] = {
        "training": {name: training_of(config.models / name / "model") for name in LABELS},
        "share": config.share,
        "drawings": len(samples),
        "compared": len(real.features),
        "images": config.images,
        "machine": machine(device),
        "rows": measured(rows, real.features, inception),
    }
    write_json(config.out.with_suffix(".json"), document)
    write_bytes(config.out, page(document).encode())
    pixels = [
        read_image(sample.open(), size_of(config), size_of(config), sample.key) for sample in spread(samples, ACROSS)
    ]
    sheet = sheet_of(rows, [to_image(one) for one in pixels])
    write_bytes(config.out.parent / PICTURE, small_jpeg(sheet, LARGEST))
    print(table(document["rows"]))


def size_of(config: PixelStudyConfig) -> int:
    """The side of the teacher's pictures."""
    return int(read_json(config.models / "teacher" / "model" / "unet" / "config.json", "config")["sample_size"])


def training_of(folder: Path) -> dict[str, Any]:
    """How a model was trained, from its recipe."""
    recipe = read_json(folder / "fewstep.json", "sampling recipe")
    return {"method": recipe["method"], "k": recipe["k"], **recipe["training"]}


# --- pictures and figures ------------------------------------------------------------------------------------


def draw_ways(config: PixelStudyConfig) -> list[RowPictures]:
    """The pictures of each way, from the same noise, from the cache or drawn now."""
    found: dict[Way, RowPictures] = {}
    for name in dict.fromkeys(way.model for way in WAYS):
        with Session(str(config.models / name / "model"), (), dtype="fp32", device=config.device) as session:
            around = {"model_sha256": parts_sha256(session.facts.path), "machine": machine(session.engine.device)}
            for way in (way for way in WAYS if way.model == name):
                options = {"solver": way.solver, "steps": way.steps, "batch_size": BATCH}
                wish = build(Draw, prompts=("",), count=config.images, **options)
                found[way] = draw(session, session.plan(wish), wish, around, f"{name}, {way.steps} steps")
    return [found[way] for way in WAYS]


def measured(rows: Sequence[RowPictures], drawings: Tensor, inception: Inception) -> list[dict[str, Any]]:
    """The figures of each way. drawings: their features (M, 2048).

    The first half of its pictures is compared with the second half of the first way's, so that no noise is common.
    """
    every = [
        features_of(inception, pictures, f"{way.model}, {way.steps}") for way, pictures in zip(WAYS, rows, strict=True)
    ]
    half = len(every[0]) // 2
    figures = []
    for way, pictures, features in zip(WAYS, rows, every, strict=True):
        kids = {"kid": kid(features, drawings), "kid_teacher": kid(features[:half], every[0][half:])}
        figures.append(
            {**way._asdict(), "nfe": pictures.nfe, **{name: interval(value) for name, value in kids.items()}}
        )
    return figures


def interval(value: KID) -> dict[str, float]:
    """A KID and its interval."""
    return {"value": value.value, "low": value.low, "high": value.high}


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most `count` samples, spread evenly over the list."""
    count = min(count, len(samples))
    return [samples[i * len(samples) // count] for i in range(count)]


def sheet_of(rows: Sequence[RowPictures], drawings: Sequence[Image.Image]) -> Image.Image:
    """The drawings, and below them the first pictures of each way, from the same noise in every column."""
    lines = [SheetRow("drawings", "", enlarged(drawings))]
    for way, pictures in zip(WAYS, rows, strict=True):
        note = f"{number_of(way.steps, 'step')} of {way.solver}"
        lines.append(SheetRow(LABELS[way.model], note, enlarged(pictures.first(ACROSS))))
    return grid(lines, [f"seed {seed}" for seed in range(ACROSS)], CELL)


def enlarged(images: Sequence[Image.Image]) -> list[Image.Image]:
    """The pictures at the sheet's size, each pixel a square."""
    return [image.resize((CELL, CELL), Image.Resampling.NEAREST) for image in images]


# --- the page ------------------------------------------------------------------------------------------------


def page(document: Mapping[str, Any]) -> str:
    """docs/pixel-space.md of these figures."""
    training = document["training"]
    return template("pixels").format(
        picture=PICTURE,
        table=table(document["rows"]),
        learnt=paragraph(learnt(document["rows"])),
        trainings=paragraph([training_in_words(name, training[name]) for name in LABELS]),
        drawings=f"{document['drawings']:,}",
        images=f"{document['images']:,}",
        compared=f"{document['compared']:,}",
        made=paragraph([*MADE, *rough(document["share"]), f"Measured on: {document['machine']}."]),
    )


def rough(share: float) -> list[str]:
    """A sentence for models that were trained for less than the recipe's own steps."""
    if share >= 1:
        return []
    return [
        f"The models of this page have had {100 * share:g} % of its steps; more steps may change the order of the rows."
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The figures as a table in Markdown. KIDs are times 1,000, with their 95 % intervals."""
    head = ["model", "solver", "steps", "NFE", "KID to the drawings", "KID to the teacher's pictures"]
    cells = [
        [
            LABELS[row["model"]],
            row["solver"],
            str(row["steps"]),
            f"{row['nfe']:g}",
            in_thousandths(row["kid"]),
            in_thousandths(row["kid_teacher"]),
        ]
        for row in rows
    ]
    return text_table(head, cells)


def in_thousandths(value: Mapping[str, float]) -> str:
    """A KID times 1,000, and half the length of its interval."""
    return f"{1000 * value['value']:.1f} ± {500 * (value['high'] - value['low']):.1f}"


def learnt(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the figures say: a sentence for each number of steps, and whether the teacher itself has learnt enough."""
    found = [
        sentence(steps, {row["model"]: row["kid_teacher"] for row in rows if row["steps"] == steps})
        for steps in (1, 2, 4)
    ]
    return [*found, *untrained(rows), *undertrained(rows)]


def sentence(steps: int, kids: Mapping[str, Mapping[str, float]]) -> str:
    """Which model is nearest to the teacher's pictures in so many steps, or that the intervals do not tell."""
    best, second = sorted(kids, key=lambda name: kids[name]["value"])[:2]
    called = f"In {number_of(steps, 'step')}, {name_of(best)}"
    if kids[best]["high"] < kids[second]["low"]:
        return f"{called} is nearest to the teacher's pictures in 50 steps."
    return f"{called} is nearest to the teacher's pictures, but its interval overlaps with that of {name_of(second)}."


def untrained(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for a teacher that is further from the drawings than some model in few steps."""
    teacher, *others = (row["kid"] for row in rows)
    if all(teacher["low"] <= other["high"] for other in others):
        return []
    return [
        "The teacher in 50 steps is further from the drawings than some of the other rows: it was trained too little"
        " for that column to rank the models."
    ]


def undertrained(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each student that is further from the drawings, in all its rows, than the teacher in 2 steps."""
    poor = next(row["kid"]["low"] for row in rows if row["model"] == "teacher" and row["steps"] == 2)
    best = {name: min(row["kid"]["high"] for row in rows if row["model"] == name) for name in ("cd", "ct")}
    return [
        f"{name_of(name)} has had too short a training to draw well: in any number of steps it is no nearer to the"
        " drawings than the teacher in 2."
        for name, high in best.items()
        if high >= poor
    ]


def name_of(model: str) -> str:
    """A model in words."""
    return {"teacher": "the teacher with DDIM", "cd": "CD", "ct": "CT"}[model]


def training_in_words(name: str, training: Mapping[str, Any]) -> str:
    """How a model was trained."""
    size, steps, batch = training["size"], training["steps"], training["batch_size"]
    of = {
        "teacher": "the denoising loss",
        "cd": f"consistency distillation from the teacher, with k = {training['k']} and {training.get('psi')} as Psi",
        "ct": "consistency training from new weights, whose steps become shorter, down to"
        f" 1/{training.get('last_levels')} of the way to the clean level",
    }[name]
    planned = f" (of {training['planned_steps']:,}, then it was stopped)" if "planned_steps" in training else ""
    of = f"{of}, {number_of(steps, 'step')}{planned} of {batch} drawings at {size} px"
    return f"{LABELS[name][0].upper()}{LABELS[name][1:]}: {of}."


if __name__ == "__main__":
    sys.exit(main_of(PixelStudyConfig, run))
