"""Write docs/commands.md from the command line itself: `python docs/build.py [FILE]`."""

from fewstep.cli import new_app


def commands() -> str:
    """The reference of every command and option, in Markdown."""
    return "<!-- written by docs/build.py -->\n\n" + new_app().generate_docs(output_format="markdown").rstrip() + "\n"


if __name__ == "__main__":
    from writing import write_page

    write_page(__doc__, "commands.md", commands)
