"""The range of a field's values in words, from its constraints."""

from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo


def range_of(field: FieldInfo) -> str:
    """A sentence such as "From 1 to 1,000."; "" for a field that has no range."""
    found = {type(bound): bound for bound in bounds(field.annotation, field.metadata)}
    low, high = "", ""
    whole = int in (field.annotation, *inner(field.annotation))
    if Ge in found:
        low = f"at least {spelled(found[Ge].ge)}"
    elif Gt in found:
        low = f"above {spelled(found[Gt].gt)}"
    if Lt in found and whole:
        high = f"at most {spelled(found[Lt].lt - 1)}"
    elif Lt in found:
        high = f"below {spelled(found[Lt].lt)}"
    elif Le in found:
        high = f"at most {spelled(found[Le].le)}"
    if low.startswith("at least ") and high.startswith("at most "):
        return f"From {low.removeprefix('at least ')} to {high.removeprefix('at most ')}."
    words = ", ".join(filter(None, (low, high)))
    return f"{words[:1].upper()}{words[1:]}." if words else ""


def bounds(annotation: Any, metadata: list[Any]) -> Iterator[Any]:
    """The bounds on a field's numbers, also where they are on one side of a union, as in `int | None`."""
    yield from (bound for bound in metadata if isinstance(bound, Ge | Gt | Le | Lt))
    if get_origin(annotation) is Annotated:
        for part in get_args(annotation)[1:]:
            yield from bounds(None, part.metadata if isinstance(part, FieldInfo) else [part])
    for part in get_args(annotation):
        if get_args(part):
            yield from bounds(part, [])


def inner(annotation: Any) -> Iterator[Any]:
    """The types an annotation is made of, at any depth."""
    for part in get_args(annotation):
        yield part
        yield from inner(part)


def spelled(number: float) -> str:
    """A bound as it is read: 1,000 or 0.5, and 2^63 - 1."""
    if isinstance(number, int) and number > 2**31 and (number + 1).bit_count() == 1:
        return f"2^{number.bit_length()} - 1"
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"
