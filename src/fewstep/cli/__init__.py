"""The command line. It turns options into configs, and events, results and errors into text."""

from fewstep.cli.app import entry, main, main_of

__all__ = ["entry", "main", "main_of"]
