"""Write docs/commands.md from the command line itself: `python -m studies.commands [FILE]`."""

from fewstep.cli import new_app
from studies.pages import write_page


def commands() -> str:
    """The reference of every command and option, in Markdown."""
    reference = new_app().generate_docs(output_format="markdown").rstrip()
    return f"<!-- written by python -m studies.commands -->\n\n{reference}\n"


if __name__ == "__main__":
    write_page(__doc__, "commands.md", commands)
