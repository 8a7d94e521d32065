"""The return value of most commands: a document for programs and a text for people."""

from typing import Any, NamedTuple

from fewstep.errors import FewstepError


class Result(NamedTuple):
    """The result of a command."""

    document: Any  # for programs, in JSON's types
    text: str  # the same for people, with fields marked by `errors.option`
    error: FewstepError | None = None  # a fault, raised after the result is shown
