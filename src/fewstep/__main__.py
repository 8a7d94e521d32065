"""`python -m fewstep`."""

from fewstep.cli import entry

entry()
