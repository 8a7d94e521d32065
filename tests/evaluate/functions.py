"""What processes of a benchmark are made to do. Importing it takes no time."""

import os

from fewstep.errors import UsageError


def end() -> None:
    """Do what a process does that the system ends."""
    os._exit(9)


def fail() -> None:
    """Raise an error of a library."""
    raise ZeroDivisionError("of a library")


def refuse() -> None:
    """Raise an error for a person."""
    raise UsageError("no", "yes")
