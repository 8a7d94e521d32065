"""What processes of a benchmark are made to do. Importing it takes no time, and libraries warn."""

import logging
import os

from fewstep.errors import UsageError
from fewstep.events import NOISY

for _name in NOISY:
    logging.getLogger(_name).warning("as some libraries do when they are imported")


def end() -> None:
    """Do what a process does that the system ends."""
    os._exit(9)


def fail() -> None:
    """Raise an error of a library."""
    raise ZeroDivisionError("of a library")


def refuse() -> None:
    """Raise an error for a person."""
    raise UsageError("no", "yes")
