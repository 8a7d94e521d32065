"""What most commands give back: a document for programs and a text for people."""

from typing import Any, NamedTuple

from fewstep.errors import FewstepError


class Result(NamedTuple):
    """What was done or found."""

    document: Any  # of JSON's types
    text: str  # the same as a person reads it, with fields marked by `errors.option`
    error: FewstepError | None = None  # what is wrong all the same: raised once the result was shown
