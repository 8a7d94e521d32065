"""Images of a row, drawn batch by batch into files that later runs find again, with each batch's time.

A file's name is the hash of everything that decides its content and its times: see `fewstep.evaluate.key`.
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewstep.configs import Draw
from fewstep.evaluate.key import key_of
from fewstep.events import counted
from fewstep.images import to_image
from fewstep.io import atomic_path, cache_dir
from fewstep.session import Plan, Session
from fewstep.session.loras import LoraFacts

PARTS = ("text", "network", "decoder")
Portion = tuple[int, int]  # (i, n): of every n batches the one that is number i
WHOLE: Portion = (0, 1)


class RowPictures(NamedTuple):
    """All images of a row."""

    files: tuple[Path, ...]  # one per batch, in order
    facts: tuple[dict[str, Any], ...]  # for each file: images, nfe, seconds of the parts
    plan: Plan
    loras: tuple[LoraFacts, ...]
    timed: tuple[dict[str, Any], ...] = ()  # facts of batches drawn only for their time, which then counts
    timed_first: tuple[dict[str, Any], ...] = ()  # facts of the first row's batches, drawn in turn with those

    def batches(self) -> Iterator[Tensor]:
        """Pixels (B, 3, H, W) float32 in [-1, 1], on 256 levels as in a PNG, batch by batch."""
        for file in self.files:
            with safe_open(file, "pt") as opened:
                yield opened.get_tensor("pixels").float() / 127.5 - 1

    def first(self, count: int) -> list[Image.Image]:
        """The first `count` images, or all if there are fewer."""
        return [to_image(pixels) for pixels in islice((image for batch in self.batches() for image in batch), count)]

    @property
    def nfe(self) -> float:
        """Network rows per image, counted when they were evaluated."""
        return float(self.facts[0]["nfe"])

    @property
    def split_s(self) -> dict[str, float]:
        """Part -> seconds per image, the median over the full batches."""
        batches = self.timed or self.facts
        most = max(batch["images"] for batch in batches)
        full = [batch for batch in batches if batch["images"] == most]
        return {part: median(batch["seconds"][part] / most for batch in full) for part in PARTS}

    @property
    def speedup(self) -> float | None:
        """The first row's time divided by this row's, the median over rounds; None if they were not timed in turns."""
        pairs = zip(self.timed_first, self.timed, strict=True) if self.timed_first else ()
        ratios = [sum(first["seconds"].values()) / sum(own["seconds"].values()) for first, own in pairs]
        return median(ratios) if ratios else None


@dataclass
class Stopwatch:
    """Measures the seconds of each part. It waits for the device's queue."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.perf_counter)

    def __call__(self, part: str) -> None:
        """Record the end of this part."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self.last
        self.last = now


def draw(
    session: Session,
    plan: Plan,
    requested: Draw,
    surroundings: Mapping[str, Any],
    title: str = "images",
    part: Portion = WHOLE,
) -> RowPictures:
    """The images of `requested`, with seeds counting up. A batch whose file exists is not drawn again.

    surroundings: other facts that decide pixels and times: the hash of the model's files, versions, the machine.
    title: name of the work in progress events. part: the batches to draw, if several processes share them.
    Each batch's file is written whole or not at all, so an interrupted run continues where it stopped. Before the first
    batch that is drawn, one step of it warms the machine up.
    """
    files, facts, warm = [], [], False
    batches = list(batches_of(requested))[part[0] :: part[1]]
    total = sum(len(batch.prompts) for batch in batches)
    for batch in counted(batches, title, "image", total, lambda batch: len(batch.prompts)):
        file = batch_file(session, plan, batch, surroundings)
        if (known := batch_facts(file)) is None:
            if not warm:
                list(session.pictures(batch, replace(plan, timesteps=plan.timesteps[-1:])))
            warm = True
            pixels, known = draw_batch(session, plan, batch)
            keep(file, pixels, known)
        files.append(file)
        facts.append(known)
    return RowPictures(tuple(files), tuple(facts), plan, session.loras)


def time_of(session: Session, plan: Plan, batch: Draw) -> dict[str, Any]:
    """The facts of a batch, as in `batch_facts`. It is drawn only for its time."""
    return draw_batch(session, plan, batch)[1]


def batches_of(requested: Draw) -> Iterator[Draw]:
    """The request in batches. Each picture keeps its own prompt and seed."""
    prompts = tuple(prompt for prompt in requested.prompts for _ in range(requested.count))
    for first in range(0, len(prompts), requested.batch_size):
        part = prompts[first : first + requested.batch_size]
        yield requested.model_copy(update={"prompts": part, "count": 1, "seed": requested.seed + first})


def batch_file(session: Session, plan: Plan, batch: Draw, surroundings: Mapping[str, Any]) -> Path:
    """The file for the images of a batch."""
    key = key_of(session, plan, batch, surroundings, Path(__file__))
    return cache_dir() / "compare" / f"{key}.safetensors"


def batch_facts(file: Path) -> dict[str, Any] | None:
    """The facts of the images in a file: number, NFE, seconds; None if they must be drawn."""
    try:
        with safe_open(file, "pt") as opened:
            facts: dict[str, Any] = json.loads(opened.metadata()["facts"])
            return facts if opened.get_slice("pixels").get_shape()[0] == facts["images"] else None
    except (OSError, SafetensorError, LookupError, ValueError, TypeError):
        return None


def draw_batch(session: Session, plan: Plan, batch: Draw) -> tuple[Tensor, dict[str, Any]]:
    """Pixels (B, 3, H, W) of a batch, and their facts for `batch_facts`."""
    stopwatch = Stopwatch(session.engine.device)
    pictures = list(session.pictures(batch, plan, stopwatch))
    facts = {"images": len(pictures), "nfe": pictures[0].recipe["nfe"], "seconds": stopwatch.seconds}
    return torch.stack([picture.pixels for picture in pictures]), facts


def keep(file: Path, pixels: Tensor, facts: Mapping[str, Any]) -> None:
    """Write a batch's pixels (B, 3, H, W) in [-1, 1], on 256 levels as in a PNG, and their facts."""
    levels = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    with atomic_path(file) as temporary:
        save_file({"pixels": levels}, temporary, {"facts": json.dumps(facts)})
