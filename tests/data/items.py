"""What a source lists, as pairs (path, caption), which tests compare."""

from pathlib import Path
from typing import NamedTuple

from fewstep.data.sources import list_samples
from fewstep.evaluate.prompts import reference_images


class Item(NamedTuple):
    """An image file and its caption."""

    path: Path
    caption: str


class Data(NamedTuple):
    """The images of --data, and the notes."""

    items: list[Item]
    notes: tuple[str, ...]


def read_data(given: Path) -> Data:
    """What --data reads at a path."""
    samples, notes, _ = list_samples(given)
    return Data([Item(Path(sample.key), *sample.captions) for sample in samples], notes)


def read_items(given: Path) -> list[Item]:
    """The images that --data reads at a path."""
    return read_data(given).items


def reference_files(given: Path) -> tuple[list[Path], tuple[str, ...]]:
    """The images that --reference reads at a path, and the notes."""
    samples, notes, _ = reference_images(given)
    return [Path(sample.key) for sample in samples], notes
