"""Write docs/commands.md from the command line itself: `python -m studies.commands [FILE]`."""

import sys

from fewstep.cli.app import new_app
from studies.pages import write_page


def commands() -> str:
    """The reference of every command and option, in Markdown."""
    started, sys.argv = sys.argv, ["fewstep"]  # usage lines name the program as it was started
    try:
        reference = new_app().generate_docs(output_format="markdown").rstrip()
    finally:
        sys.argv = started
    return f"<!-- written by python -m studies.commands -->\n\n{reference}\n"


if __name__ == "__main__":
    write_page(__doc__, "commands.md", commands)
