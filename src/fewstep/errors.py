"""Errors a person can act on: one line that says what is wrong, and a hint that says what to do.

FewstepError        anything wrong with what was given, or with the machine; exit code 1
├── UsageError      a value outside what a command accepts; exit code 2
└── Interrupted     stopped by Ctrl-C after saving what there was; exit code 130
"""


class FewstepError(Exception):
    """A problem stated in one line, with the value as typed, and the fix.

    message: what is wrong, one line without a full stop's worth of history.
    hint: what the person can do about it, one line.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

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
