"""Errors a person can act on: one line that says what is wrong, and a hint that says what to do.

FewstepError        anything wrong with what was given, or with the machine; exit code 1
├── UsageError      a value outside what a command accepts; exit code 2
└── Interrupted     stopped by Ctrl-C after saving what there was; exit code 130
"""

LONGEST = 2000  # characters of a message: what stands in a file may be of any length


def printable(text: str, most: int = LONGEST) -> str:
    """The text as one line that is safe to print: what is no visible character is written as in Python's strings.

    So a file's own words can neither move a terminal's cursor nor begin a line. most: characters; of a longer text
    the rest is left out, and its length said.
    """
    cut = text if len(text) <= most else f"{text[:most]} ... ({len(text):,} characters)"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def is_text(text: str) -> bool:
    """Whether every character is one: bytes that are no UTF-8, and half a character in JSON, make strings that no
    file and no tokenizer takes.
    """
    return not any("\ud800" <= character <= "\udfff" for character in text)


class FewstepError(Exception):
    """A problem stated in one line, with the value as typed, and the fix.

    message: what is wrong, one line without a full stop's worth of history.
    hint: what the person can do about it, one line.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str) -> None:
        self.message, self.hint = printable(message), printable(hint)
        super().__init__(self.message)

    def __reduce__(self) -> tuple[type["FewstepError"], tuple[str, str]]:
        return type(self), (self.message, self.hint)  # so that it comes back from another process

    def __str__(self) -> str:
        return f"{self.message}\n\nhint: {self.hint}"


class UsageError(FewstepError):
    """A value outside what a command accepts."""

    exit_code = 2


class Interrupted(FewstepError):
    """Work stopped by the person, after saving what there was."""

    exit_code = 130
