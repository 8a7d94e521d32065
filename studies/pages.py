"""Where pages are, and how those that need no options are written."""

from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import fill

from fewstep.io import write_bytes

DOCS = Path(__file__).parents[1] / "docs"


def template(name: str) -> str:
    """The text of a page, with {names} where what is measured goes."""
    return Path(__file__).with_name(f"{name}.txt").read_text(encoding="utf-8")


def paragraph(sentences: Sequence[str]) -> str:
    """The sentences as one paragraph of lines that fit."""
    return fill(" ".join(sentences), 120, break_long_words=False, break_on_hyphens=False)


def write_page(about: str | None, name: str, page: Callable[[], str]) -> None:
    """Write what `page` returns to the file named on the command line, or to docs/`name`; --help says `about`."""
    parser = ArgumentParser(description=about)
    parser.add_argument("file", type=Path, nargs="?", default=DOCS / name)
    write_bytes(parser.parse_args().file, page().encode())
