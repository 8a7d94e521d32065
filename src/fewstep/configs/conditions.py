"""Conditions on the columns of a table, such as `aesthetic >= 5.5 and language = en`. No part is run as code."""

import operator
import re
from collections.abc import Mapping
from typing import NamedTuple

from fewstep.errors import UsageError, option

OPERATORS = {">=": operator.ge, "<=": operator.le, "!=": operator.ne, "==": operator.eq, ">": operator.gt}
OPERATORS |= {"=": operator.eq, "<": operator.lt}
_COMPARISON = re.compile(
    r"""\s*(?P<column>[^\W\d][\w.:-]*|`[^`]+`)\s*(?P<operator>[><!=]=|[><=])\s*
    (?P<value>"[^"]*"|'[^']*'|[^\s<>=!"'`]+)\s*(?P<more>(?<!\w)and(?!\w)|$)""",
    re.VERBOSE | re.IGNORECASE,
)


class Clause(NamedTuple):
    """A column compared with a value."""

    column: str
    operator: str
    value: str

    def holds(self, row: Mapping[str, object]) -> bool:
        """Whether it holds for a row: numbers are compared as numbers, other texts for = and != alone.

        For a row without the column, or with an empty cell there, no comparison holds.
        """
        cell = row.get(self.column)
        if cell is None or cell == "":
            return False
        compare = OPERATORS[self.operator]
        left, right = number(cell), number(self.value)
        if left is not None and right is not None:
            return bool(compare(left, right))
        return self.operator in ("=", "==", "!=") and bool(compare(str(cell).lower(), self.value.lower()))


class Condition(NamedTuple):
    """Comparisons that must all hold."""

    clauses: tuple[Clause, ...]

    @property
    def columns(self) -> frozenset[str]:
        """The columns that are compared."""
        return frozenset(clause.column for clause in self.clauses)

    def holds(self, row: Mapping[str, object]) -> bool:
        """Whether all hold for a row."""
        return all(clause.holds(row) for clause in self.clauses)


def number(value: object) -> float | None:
    """The value as a number; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def parsed(text: str) -> Condition:
    """The condition that a text states. Raises UsageError that shows where it is none."""
    clauses, start = [], 0
    while (found := _COMPARISON.match(text, start)) is not None:
        column, value = found["column"].strip("`"), found["value"]
        quoted = value[0] in "\"'"
        clauses.append(Clause(column, found["operator"], value[1:-1] if quoted else value))
        if not found["more"]:
            return Condition(tuple(clauses))
        start = found.end()
    raise UsageError(
        f"{option('where')} {text}: this is no comparison: {text[start:].strip() or 'nothing'}",
        "write COLUMN OPERATOR VALUE, several joined by and: 'aesthetic >= 5.5 and language = en'; operators are"
        " >= <= > < = !=",
    )
