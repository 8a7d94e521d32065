"""Figures in words."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

CERTAIN = 2  # standard errors
Figures = Mapping[str, Any]


def value_text(value: Figures, scale: float = 1, digits: int = 1) -> str:
    """A number with its error."""
    return f"{scale * value['value']:.{digits}f} ± {scale * value['error']:.{digits}f}"


def change_text(value: Figures, scale: float = 1, digits: int = 1) -> str:
    """A difference with its error, signed."""
    return f"{scale * value['value']:+.{digits}f} ± {scale * value['error']:.{digits}f}"


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


def sorted_out(
    rows: Sequence[Figures],
    key: str,
    words: Mapping[int, str],
    name: Callable[[Figures], str] = lambda row: row["name"],
) -> str:
    """Which rows a change is above, below or near 0 in. words: what that is called, by `sign`."""
    groups = {word: [name(row) for row in rows if sign(row[key]) == which] for which, word in words.items()}
    return "; ".join(f"{word}: {listed(names)}" for word, names in groups.items() if names)


def code(row: Figures) -> str:
    """What a row was drawn with."""
    return f"`{row['drawn_with']}`"


def bullets(lines: Sequence[str]) -> str:
    """A list."""
    return "\n".join(f"* {line}" for line in lines)


def picture(name: str, words: str) -> str:
    """A picture of docs/pictures."""
    return f"![{words}](pictures/limits-{name}.jpg)"


def row_of(section: Figures, name: str) -> Figures:
    """The row of that way to draw."""
    found: Figures = next(row for row in section["rows"] if row["drawn_with"] == name)
    return found
