"""Errors a person can act on: one line that says what is wrong, and a hint that says what to do.

FewstepError        anything wrong with what was given, or with the machine; exit code 1
├── UsageError      a value outside what a command accepts; exit code 2
└── Interrupted     stopped by Ctrl-C after saving what there was; exit code 130

Messages, hints and notes name the fields of configs by `option`, and each skin spells them in its own way: the command
line as --guidance-scale, Python as guidance_scale.
"""

import secrets
from collections.abc import Callable, Iterable

LONGEST = 2000  # characters of a message: what stands in a file may be of any length
MARK = f"\0{secrets.token_hex(8)}\0"  # around a field's name; new in each process, so that no foreign text holds it


def option(field: str) -> str:
    """The field, marked so that a skin can spell it: for messages, hints and notes, which become a Line."""
    return f"{MARK}{field}{MARK}"


def plain(field: str) -> str:
    """The field as Python spells it."""
    return field


def spelled(text: str, spell: Callable[[str], str] = plain) -> str:
    """The text with its marked fields spelled."""
    return "".join(spell(part) if i % 2 else part for i, part in enumerate(text.split(MARK)))


def printable(text: str, most: int = LONGEST) -> str:
    """The text as one line that is safe to print: what is no visible character is written as in Python's strings.

    So a file's own words can neither move a terminal's cursor nor begin a line. most: characters; of a longer text
    the rest is left out, and its length said.
    """
    cut = text if len(text) <= most else f"{text[:most]} ... ({len(text):,} characters)"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def number_of(count: int, what: str) -> str:
    """A number of things in words, such as 1 file or 1,200 files."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def is_text(text: str) -> bool:
    """Whether every character is one: bytes that are no UTF-8, and half a character in JSON, make strings that no
    file and no tokenizer takes.
    """
    return not any("\ud800" <= character <= "\udfff" for character in text)


class Line(str):
    """One printable line that may name fields: as a str it spells them as Python does, `spelled` as a skin does."""

    parts: tuple[str, ...]  # text, a field, text, ..., text

    def __new__(cls, text: str) -> "Line":
        """text: with fields marked by `option`."""
        return text if isinstance(text, Line) else cls.of(text.split(MARK))

    @classmethod
    def of(cls, parts: Iterable[str]) -> "Line":
        """The line of these parts."""
        parts = tuple(parts)
        line = super().__new__(cls, printable("".join(parts)))
        line.parts = parts
        return line

    def __reduce__(self) -> tuple[Callable[..., "Line"], tuple[tuple[str, ...]]]:
        return Line.of, (self.parts,)  # without marks, which another process does not know

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields it names, in order."""
        return self.parts[1::2]

    @property
    def marked(self) -> str:
        """The text with its fields marked, to be put into another."""
        return "".join(option(part) if i % 2 else part for i, part in enumerate(self.parts))

    def spelled(self, spell: Callable[[str], str]) -> str:
        """The line with its fields spelled."""
        return printable(spelled(self.marked, spell))


class FewstepError(Exception):
    """A problem stated in one line, with the value as typed, and the fix.

    message: what is wrong, one line without a full stop's worth of history.
    hint: what the person can do about it, one line.
    field: of a config, which the problem is about; by default the first that the message names, if it names one.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str, field: str | None = None) -> None:
        self.message, self.hint = Line(message), Line(hint)
        self.field = field or next(iter(self.message.fields), None)
        super().__init__(self.message)

    def __reduce__(self) -> tuple[type["FewstepError"], tuple[Line, Line, str | None]]:
        return type(self), (self.message, self.hint, self.field)  # so that it comes back from another process

    def __str__(self) -> str:
        return self.spelled(plain)

    def spelled(self, spell: Callable[[str], str]) -> str:
        """Message and hint, with their fields spelled."""
        return f"{self.message.spelled(spell)}\n\nhint: {self.hint.spelled(spell)}"

    @property
    def whole(self) -> str:
        """Message and hint in one line, with their fields marked, to be put into a note."""
        return f"{self.message.marked}; {self.hint.marked}"


class UsageError(FewstepError):
    """A value outside what a command accepts."""

    exit_code = 2


class Interrupted(FewstepError):
    """Work stopped by the person, after saving what there was."""

    exit_code = 130
