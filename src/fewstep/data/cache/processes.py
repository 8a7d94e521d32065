"""The processes of a run, which torchrun and accelerate launch tell by environment variables."""

import os
from typing import NamedTuple


class Process(NamedTuple):
    """One process of a run, which does its share of the work."""

    rank: int
    of: int

    def has(self, number: int, block: int = 1) -> bool:
        """Whether the item of this number is this process's. block: how many that follow each other stay together."""
        return number // block % self.of == self.rank


def this_process() -> Process:
    """The process that asks."""
    return Process(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
