"""Write docs/commands.md from the command line itself: `python docs/build.py [FILE]`."""

import sys
from pathlib import Path

from fewstep.cli import new_app


def commands() -> str:
    """The reference of every command and option, in Markdown."""
    return "<!-- written by docs/build.py -->\n\n" + new_app().generate_docs(output_format="markdown").rstrip() + "\n"


if __name__ == "__main__":
    target = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).with_name("commands.md")
    target.write_text(commands(), encoding="utf-8")
