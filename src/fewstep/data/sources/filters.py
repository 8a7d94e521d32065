"""Which images of a source count: those that fit, and of broken ones none or an error."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from fewstep.configs.conditions import Condition, parsed
from fewstep.configs.data import Filtering, Selection
from fewstep.data.found import counts_in_words
from fewstep.data.sources.source import Broken, Item, Sample
from fewstep.errors import FewstepError, option
from fewstep.events import counted
from fewstep.images import opened, stated_size
from fewstep.io import write_bytes

SKIPPED = "skipped.jsonl"  # the list of what was broken, in the folder of what is made


class Filters(NamedTuple):
    """What is left out of a source."""

    min_size: int = 0  # pixels of the smaller side
    condition: Condition | None = None
    skip_broken: bool = False  # leave out what is broken; otherwise it is an error
    max_samples: int | None = None

    @property
    def columns(self) -> frozenset[str]:
        """The columns that samples must carry."""
        return frozenset() if self.condition is None else self.condition.columns

    @property
    def looks(self) -> bool:
        """Whether images must be read."""
        return self.skip_broken or self.min_size > 0


EVERYTHING = Filters()


class Kept(NamedTuple):
    """The samples that count, and what was left out."""

    samples: list[Sample]
    broken: list[Broken]
    counts: Counter[str]  # of the others, for `counts_in_words`

    @property
    def left_out(self) -> str:
        """What was left out, in words; "" if nothing was."""
        broken = Counter({"broken one{s}": len(self.broken)})
        return counts_in_words(+(self.counts + broken))


def filters_of(config: Filtering) -> Filters:
    """The filters that a command was given."""
    condition = None if config.where is None else parsed(config.where)
    skip_broken = isinstance(config, Selection) and config.skip_broken
    return Filters(config.min_size or 0, condition, skip_broken, config.max_samples)


def whole_size(sample: Sample) -> tuple[int, int]:
    """Width and height of the image, all of whose pixels are read. Raises FewstepError if they cannot be."""
    return opened(sample.open(), sample.key).size


def kept(
    source: Iterable[Item], filters: Filters, captioned: bool, size_of: Callable[[Sample], tuple[int, int]] = whole_size
) -> Kept:
    """The samples of the source that count.

    captioned: whether a sample without a caption is broken. size_of: looks at the image where broken ones are left out.
    Raises FewstepError for the first that is broken, unless broken ones are left out; and for a condition on a column
    that no sample has.
    """
    found, present, looked = Kept([], [], Counter()), set[str](), 0
    if filters.looks and filters.max_samples is None:
        items = list(source)
        source = counted(items, "looking at the images", "image", len(items))
    for item in source:
        if filters.max_samples is not None and len(found.samples) >= filters.max_samples:
            break
        looked += 1
        try:
            sample = checked(item, captioned)
            present |= sample.columns.keys() if filters.condition else set()
            reason = misfit(sample, filters, size_of)
        except FewstepError as error:
            if not filters.skip_broken:
                raise
            found.broken.append(Broken(item.key, error))
            continue
        if reason:
            found.counts[reason] += 1
        else:
            found.samples.append(sample)
    absent = sorted(filters.columns - present)
    if absent and looked > len(found.broken):
        raise FewstepError(
            f"{option('where')}: no image has a column {absent[0]}", "check its name in the table, or in the JSON files"
        )
    return found


def checked(item: Item, captioned: bool) -> Sample:
    """The sample. Raises FewstepError for what is broken, or lacks a caption."""
    if isinstance(item, Broken):
        raise item.error
    if captioned and not item.captions:
        raise FewstepError(f"no caption for {item.key}", "give every image a caption")
    return item


def misfit(sample: Sample, filters: Filters, size_of: Callable[[Sample], tuple[int, int]]) -> str:
    """Why the sample is left out, as a key of counts; "" if it counts. Raises FewstepError for a broken image."""
    if filters.condition is not None and not filters.condition.holds(sample.columns):
        return f"image{{s}} by {option('where')}"
    if not filters.looks:
        return ""
    size = sample.size
    if filters.skip_broken:
        size = size_of(sample)
    elif size is None:
        size = stated_size(sample.open(), sample.key)
    return f"image{{s}} below {filters.min_size} pixels" if min(size) < filters.min_size else ""


def write_skipped(folder: Path, broken: Iterable[Broken]) -> Path:
    """The file, written now, that lists what was broken: a key and a reason in each line."""
    lines = [json.dumps({"key": one.key, "reason": str(one.error.message)}, ensure_ascii=False) for one in broken]
    write_bytes(folder / SKIPPED, "".join(f"{line}\n" for line in lines).encode())
    return folder / SKIPPED
