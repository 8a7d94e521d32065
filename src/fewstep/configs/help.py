"""The help of a config's fields: the docstring below each, and its range. It is read when help is asked for."""

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from pydantic import BaseModel

from fewstep.configs.ranges import range_of


def describe(kind: type[BaseModel]) -> None:
    """Give each field of a config its help as `description`: wrapped nowhere, and with the field's range at its end.

    A field that says its `description` itself keeps that; else the docstring below it counts, in `kind` or in the
    nearest class that it inherits one from.
    """
    found = [docstrings(base) for base in kind.__mro__ if issubclass(base, BaseModel) and base is not BaseModel]
    for name, field in kind.model_fields.items():
        text = field.description or next((texts[name] for texts in found if name in texts), "")
        words = " ".join(text.split()).removesuffix(range_of(field))
        field.description = f"{words.rstrip()} {range_of(field)}".strip()


def docstrings(kind: type) -> Mapping[str, str]:
    """Field -> the docstring below it, of the fields that the class itself has in its source."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return {} if file is None else docstrings_in(file).get(kind.__name__, {})


@cache
def docstrings_in(file: str) -> Mapping[str, Mapping[str, str]]:
    """Class -> field -> docstring, of all classes in a file of source."""
    tree = ast.parse(Path(file).read_bytes())
    return {node.name: dict(documented(node)) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def documented(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """The fields of a class that have a docstring below them."""
    for field, below in zip(node.body, node.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, text
