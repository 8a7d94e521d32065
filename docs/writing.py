"""How the pages that need no options are written."""

from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

from fewstep.io import write_bytes


def write_page(about: str | None, name: str, page: Callable[[], str]) -> None:
    """Write what `page` returns to the file named on the command line, or to docs/`name`; --help says `about`."""
    parser = ArgumentParser(description=about)
    parser.add_argument("file", type=Path, nargs="?", default=Path(__file__).with_name(name))
    write_bytes(parser.parse_args().file, page().encode())
