"""Images that threads read, decode and cut ahead of the encoder."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import blake2b
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from fewstep.data.cache.store import Keys
from fewstep.data.framing import KEY, Framing, ImageFacts
from fewstep.data.sources import Sample
from fewstep.images import on_white, opened, stated_size

A = TypeVar("A")
B = TypeVar("B")
AHEAD = 4  # items for each thread that are begun before they are asked for


class Prepared(NamedTuple):
    """A sample that has been looked at."""

    number: int  # of the sample
    facts: ImageFacts
    pixels: dict[bytes, Tensor]  # (3, H, W) uint8 of each view that is missing, by key


def prepared(number: int, sample: Sample, known: ImageFacts | None, kept: Keys, framing: Framing) -> Prepared:
    """The sample, with its pictures that are missing. Its file is read only where it must be.

    known: what is known of it. kept: keys of pictures that are not missing.
    Raises FewstepError naming an image that cannot be read by its key.
    """
    data = None if known is not None else sample.open()
    if known is None:
        assert data is not None, "it was read just now"
        width, height = stated_size(data, sample.key)
        known = ImageFacts(content_of(data), height, width)
    missing = {key: view for view in framing.views_of(known) if (key := view.key(known)) not in kept}
    if not missing:
        return Prepared(number, known, {})
    image = on_white(opened(sample.open() if data is None else data, sample.key))
    pixels = {key: torch.from_numpy(np.array(view.of(image))).permute(2, 0, 1) for key, view in missing.items()}
    return Prepared(number, known, pixels)


def content_of(data: bytes) -> bytes:
    """The hash of an image's file."""
    return blake2b(data, digest_size=KEY).digest()


def default_workers() -> int:
    """As many threads as this process may use processors."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ahead(work: Callable[[A], B], items: Iterable[A], workers: int) -> Iterator[B]:
    """What the work makes of each item, in order. Threads are ahead of who asks by a few items."""
    with ThreadPoolExecutor(workers) as pool:
        begun: deque[Future[B]] = deque()
        try:
            for item in items:
                begun.append(pool.submit(work, item))
                if len(begun) > workers * AHEAD:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()
