"""The captions of an image: in a row of a table, in a text file, in a JSON file."""

import json
from collections.abc import Mapping

from fewstep.errors import FewstepError, is_text

CAPTION_KEYS = ("captions", "text", "caption", "prompt")  # of which the first that holds something counts
TEXT_SUFFIXES, JSON_SUFFIX = (".txt", ".caption"), ".json"


def captions_in(row: Mapping[str, object]) -> tuple[str, ...]:
    """The captions in a row, a text or a list of texts, without spaces around them; none if one is not text."""
    found = next((row[key] for key in CAPTION_KEYS if row.get(key)), None)
    given: list[object] = found if isinstance(found, list) else [found]
    texts = [text.strip() for text in given if isinstance(text, str) and is_text(text)]
    return tuple(filter(None, texts)) if len(texts) == len(given) else ()


def caption_of(row: Mapping[str, object]) -> str | None:
    """The first caption in a row; None if it has none."""
    return next(iter(captions_in(row)), None)


def no_caption(where: str) -> FewstepError:
    """The error for a row without a caption."""
    return FewstepError(f"{where} has no caption", f"give every row a {', '.join(CAPTION_KEYS[1:-1])} or prompt")


def decoded(data: bytes, name: str) -> str:
    """The text of a file, without the byte order mark with which spreadsheets and Windows begin a file.

    Raises FewstepError naming the file if it is not UTF-8.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FewstepError(f"{name} is not UTF-8 text ({error.reason})", "save it as UTF-8") from None
    if "\0" in text:
        raise FewstepError(f"{name} is not UTF-8 text (it holds zeros, as UTF-16 does)", "save it as UTF-8")
    return text


def json_object(text: str, where: str) -> Mapping[str, object]:
    """The JSON object that the text is. Raises FewstepError that names where it stands."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, or a number of too many digits
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).partition(":")[0]
        raise FewstepError(f"{where} is not JSON ({reason})", "write one JSON object on each line") from None
    if not isinstance(row, dict):
        raise FewstepError(f"{where} is not a JSON object", "write one JSON object on each line")
    return row
