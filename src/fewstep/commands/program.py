"""The program's name, for commands that a person can type."""

import shutil
import sys
from pathlib import Path


def program() -> str:
    """The program's name if the shell finds it, else its path."""
    path = Path(sys.argv[0])
    return "fewstep" if shutil.which("fewstep") or path.stem != "fewstep" else str(path)
