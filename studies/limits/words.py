"""Figures in words."""

from collections.abc import Mapping, Sequence
from typing import Any

CERTAIN = 2  # standard errors
Figures = Mapping[str, Any]


def value_text(value: Figures, scale: float = 1, digits: int = 1) -> str:
    """A number with its error."""
    return f"{scale * value['value']:z.{digits}f} ± {scale * value['error']:.{digits}f}"


def change_text(value: Figures, scale: float = 1, digits: int = 1) -> str:
    """A difference with its error, signed; in bold print if it is one for certain."""
    text = f"{scale * value['value']:+z.{digits}f} ± {scale * value['error']:.{digits}f}"
    return f"**{text}**" if sign(value) else text


def sign(value: Figures) -> int:
    """1 for a number above 0 for certain, -1 for one below, 0 for one not told from it."""
    if abs(value["value"]) <= CERTAIN * value["error"]:
        return 0
    return 1 if value["value"] > 0 else -1


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    if len(names) < 2:
        return "".join(names) or "none"
    return f"{', '.join(names[:-1])} and {names[-1]}"


def code(row: Figures) -> str:
    """What a row was drawn with."""
    return f"`{row['drawn_with']}`"


def picture(name: str, words: str) -> str:
    """A picture of docs/pictures."""
    return f"![{words}](pictures/limits-{name}.jpg)"


def row_of(section: Figures, name: str) -> Figures:
    """The row of that way to draw."""
    found: Figures = next(row for row in section["rows"] if row["drawn_with"] == name)
    return found
