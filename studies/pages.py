"""The folder of the pages, and the code that writes pages without options."""

from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import fill

from fewstep.io import write_bytes

DOCS = Path(__file__).parents[1] / "docs"


def template(name: str) -> str:
    """The text of a page, with {names} in place of the measured values."""
    return Path(__file__).with_name(f"{name}.txt").read_text(encoding="utf-8")


def paragraph(sentences: Sequence[str]) -> str:
    """The sentences as one paragraph of lines that fit."""
    return fill(" ".join(sentences), 120, break_long_words=False, break_on_hyphens=False)


def write_page(about: str | None, name: str, page: Callable[[], str]) -> None:
    """Write the page to the file named on the command line, or to docs/`name`. --help prints `about`."""
    parser = ArgumentParser(description=about)
    parser.add_argument("file", type=Path, nargs="?", default=DOCS / name)
    write_bytes(parser.parse_args().file, page().encode())
