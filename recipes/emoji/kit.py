"""The reference kit: the data about the drawings that metrics and the demo need, in 5.5 MB, with its error.

    python -m recipes.emoji.kit [--out FILE]

OUT is the reference that `fewstep.metrics.reference` reads. The same folder holds drawings/, a few hundred real
drawings as captioned training data, and kit.json: sizes, and the error of metrics with the kit.
"""

import json
import random
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from PIL import Image
from pydantic import Field

from fewstep.cli import main_of
from fewstep.configs import Config
from fewstep.errors import UsageError
from fewstep.events import counted
from fewstep.io import atomic_folder, cache_dir, write_json
from fewstep.metrics.agreement import Pictures, ceiling
from fewstep.metrics.frechet import Statistics, frechet_distance, statistics
from fewstep.metrics.networks import EfficientNet
from fewstep.metrics.reference import Reference, ceiling_with, compress, load_reference, of_style, save_reference
from recipes.emoji.built import read_metadata
from recipes.emoji.captions import STYLES, main_caption
from recipes.emoji.features import drawing_features
from recipes.emoji.names import COMMON

PAIRS = 1000  # number of pairs on which the agreement is compared
QUALITY = 90  # of WebP: 2.2 kB a drawing; a PNG of 256 colours has 4.6


class KitConfig(Config):
    """Write the reference kit of the drawings, and measure its error."""

    images: Path = cache_dir() / "emoji" / "images"
    """The folder dataset.py built."""
    out: Path = cache_dir() / "emoji" / "kit" / "reference.safetensors"
    """The reference; drawings/ and kit.json are written to the same folder."""
    dims: Annotated[int, Field(ge=1)] = 160
    """Dimensions that are kept of a drawing's 1280 features, one byte each."""
    rank: Annotated[int, Field(ge=0)] = 48
    """Rank of each style's covariance."""
    drawings: Annotated[int, Field(ge=1)] = 320
    """Number of drawings in the kit, of well-known things in all base styles."""


def run(config: KitConfig) -> None:
    """Write the kit, measure it from its file, print and keep the figures."""
    folder, figures = config.out.parent / "drawings", config.out.parent / "kit.json"
    if folder.exists() and not figures.is_file():
        raise UsageError(f"{folder} is already there and is not a kit's folder", "choose another --out")
    drawings, rows = drawing_features(config.images, cache_dir() / "emoji"), read_metadata(config.images)
    save_reference(config.out, compress(drawings, config.dims, EfficientNet.label, config.rank))
    reference = load_reference(config.out)
    values = {
        "dims": config.dims,
        "rank": config.rank,
        "agreement": agreement_errors(drawings, [i for i, row in enumerate(rows) if row["split"] == "base"], reference),
        "frechet": frechet_errors(drawings, reference),
    }
    picked = well_known(rows, config.drawings)
    save_drawings(config.images, picked, folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    values |= {"drawings": len(picked), "bytes": {"reference": config.out.stat().st_size, "drawings": size}}
    write_json(figures, values)
    print(json.dumps(values, indent=2))


# --- the kit's error ----------------------------------------------------------------------------------------


def agreement_errors(drawings: Pictures, base: Sequence[int], reference: Reference) -> dict[str, float]:
    """The ceiling of random base pairs by all features and by the kit, and the share of pairs judged alike."""
    chosen = random.Random(0).sample(base, min(PAIRS, len(base)))
    pairs = Pictures(
        drawings.features[chosen], [drawings.styles[i] for i in chosen], [drawings.concepts[i] for i in chosen]
    )
    whole, kit = ceiling(pairs, drawings), ceiling_with(pairs, reference)
    alike = sum(a == b for a, b in zip(whole.hits, kit.hits, strict=True)) / whole.count
    return {"pairs": whole.count, "full": whole.score, "kit": kit.score, "alike": alike}


def frechet_errors(drawings: Pictures, reference: Reference) -> dict[str, dict[str, Any]]:
    """Of every style: Fréchet distance of the kit to all features, of two halves, and of another style to both.

    Few drawings make every distance but `kit` too large, most of all that of the halves: see frechet_distance.
    """
    whole = {style: of_style(drawings, style, reference.features) for style in reference.statistics}
    names, errors = list(whole), {}
    pairs = list(zip(names, [*names[1:], names[0]], strict=True))
    for style, other in counted(pairs, "Fréchet distances", "style", len(pairs)):
        kit = reference.statistics[style].expanded()
        full, by_kit = distance(whole[other], whole[style]), distance(whole[other], kit)
        errors[style] = {
            "kit": distance(whole[style], kit),
            "halves": distance(*halves(drawings, style, reference.features)),
            "other": other,
            "other_full": full,
            "other_kit": by_kit,
            "relative_error": by_kit / full - 1,
        }
    return errors


def distance(a: Statistics, b: Statistics) -> float:
    """The Fréchet distance, of few drawings too."""
    return frechet_distance(a, b, allow_few=True)


def halves(drawings: Pictures, style: str, features: str) -> list[Statistics]:
    """Statistics of two random halves of the drawings of a style."""
    rows = [i for i, name in enumerate(drawings.styles) if name == style]
    random.Random(0).shuffle(rows)
    middle = len(rows) // 2
    return [statistics([drawings.features[part]], features) for part in (rows[:middle], rows[middle:])]


# --- the kit's drawings -------------------------------------------------------------------------------------


def well_known(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """At most `count` base drawings of COMMON things, the same every time.

    In each turn every thing is drawn in one style, the next thing in the next style, so that any count
    spreads over all styles and things.
    """
    base = {(row["style"], row["label"]): row for row in rows if row["split"] == "base"}
    styles = [style for style, about in STYLES.items() if about.split == "base"]
    turns = product(range(len(styles)), enumerate(COMMON))
    pairs = ((styles[(i + turn) % len(styles)], thing) for turn, (i, thing) in turns)
    return [base[pair] for pair in pairs if pair in base][:count]


def save_drawings(images: Path, rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write these drawings as WebP, and metadata.jsonl with caption, licence and style of each."""
    with atomic_folder(folder) as temporary:
        lines = []
        for row in rows:
            name = Path(row["file_name"]).with_suffix(".webp")
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            with Image.open(images / row["file_name"]) as image:
                image.convert("RGB").save(temporary / name, "WEBP", quality=QUALITY, method=6)
            about = {"text": main_caption(row["style"], row["label"]), "license": row["license"], "style": row["style"]}
            lines.append(json.dumps({"file_name": name.as_posix()} | about, ensure_ascii=False) + "\n")
        (temporary / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main_of(KitConfig, run))
