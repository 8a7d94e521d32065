"""Prompts: from a file, from a list that ships, from the captions of the drawings that ship."""

import json
from pathlib import Path
from typing import NamedTuple

from fewstep.assets import shipped_kit, shipped_prompt_list
from fewstep.data.captions import caption_of
from fewstep.errors import FewstepError, option

OF = " emoji of "  # between a shipped caption's words for the style and for the thing
NAMED = 5  # largest number of broken lines that an error names


class Prompt(NamedTuple):
    """A prompt, and, for agreement, its style and concept."""

    text: str
    style: str | None = None
    concept: str | None = None


class Prompts(NamedTuple):
    """Prompts in order, and their source in words."""

    prompts: tuple[Prompt, ...]
    source: str


def listed_prompts(file: Path) -> Prompts:
    """The prompts of a file or of a shipped list. A file with the name of a list comes before the list."""
    listed = () if file.exists() else list_that_ships(str(file))
    return Prompts(listed or read_prompts(file), f"{file}, a list that ships" if listed else str(file))


def list_that_ships(name: str) -> tuple[Prompt, ...]:
    """The prompts of the shipped list of this name; none for another name."""
    file = shipped_prompt_list(name)
    return () if file is None else read_prompts(file)


def shipped_prompts() -> Prompts:
    """The captions of the drawings that ship, in the kit's order. The file names give the concepts."""
    try:
        file = shipped_kit() / "drawings" / "metadata.jsonl"
    except FewstepError as error:
        hint = f"use {option('prompt_file')} with one prompt per line, or {option('reference')} with captioned images"
        raise FewstepError(f"there are no prompts: {error.message.marked}", hint) from None
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    prompts = (Prompt(row["text"], row["style"], Path(row["file_name"]).stem) for row in rows)
    return Prompts(tuple(prompts), "captions of the drawings that ship")


def read_prompts(file: Path) -> tuple[Prompt, ...]:
    """The prompts in a text file, one per line, or in a .jsonl file with text and optional style and concept.

    Empty lines are skipped. Raises FewstepError that names the broken lines.
    """
    try:
        lines = file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise FewstepError(
            f"cannot read the prompts in {file} ({error.strerror or error})",
            f"{option('prompt_file')} takes a file with one prompt per line, or a list that ships: names, typed or"
            " general",
        ) from None
    parse = _from_json if file.suffix.lower() == ".jsonl" else Prompt
    prompts, broken = [], []
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8").strip()
            prompts += [parse(text)] if text else []
        except ValueError as error:
            broken.append(f"line {number} {_reason(error)}")
    if broken:
        more = f" and {len(broken) - NAMED} more lines" if len(broken) > NAMED else ""
        raise FewstepError(
            f"{file}: {'; '.join(broken[:NAMED])}{more}",
            'write one {"text": "...", "style": "...", "concept": "..."} per line; style and concept are optional'
            if parse is _from_json
            else "save the file as UTF-8, with one prompt per line",
        )
    if not prompts:
        raise FewstepError(f"there are no prompts in {file}", "write one prompt per line")
    return tuple(prompts)


def _reason(error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "is not UTF-8"
    return f"is not JSON ({error.msg})" if isinstance(error, json.JSONDecodeError) else str(error)


def _from_json(line: str) -> Prompt:
    """The prompt of a line. Raises ValueError with the fault."""
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("is not a JSON object")
    text = caption_of(row)
    if text is None:
        raise ValueError("has no text")
    for key in ("style", "concept"):
        if not isinstance(row.get(key), str | None):
            raise ValueError(f"has a {key} that is not text")
    return Prompt(text, row.get("style"), row.get("concept"))
