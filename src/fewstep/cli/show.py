"""Prints results on stdout: text for people, or one JSON document for programs."""

import json
from collections.abc import Iterator

from fewstep.commands.result import Result
from fewstep.configs import option_name
from fewstep.errors import spelled


def show(result: object, as_json: bool) -> None:
    """Print the result of a command: a Result, or pictures that are saved one after another."""
    if isinstance(result, Result):
        print(
            json.dumps(result.document, indent=2, ensure_ascii=False) if as_json else spelled(result.text, option_name)
        )
        if result.error is not None:
            raise result.error
    elif isinstance(result, Iterator):
        documents, sheet = [], {}
        for saved in result:
            if saved.picture is None:
                sheet = {"sheet": str(saved.file)}
            else:
                documents.append(saved.document)
            if not as_json:
                print(saved.file, flush=True)
        if as_json:
            print(json.dumps({"images": documents, **sheet}, indent=2))
