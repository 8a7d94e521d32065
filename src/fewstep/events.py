"""What is said to a person beside results: notes, on stderr."""

import sys

from fewstep.errors import printable


def note(text: str) -> None:
    """Say it in one line, whatever stands in it."""
    print(f"note: {printable(text)}", file=sys.stderr)
