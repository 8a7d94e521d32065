"""What the program is called, for commands that a person is to type."""

import shutil
import sys
from pathlib import Path


def program() -> str:
    """How the program is called here: by its name if the shell finds it, else by its path."""
    path = Path(sys.argv[0])
    return "fewstep" if shutil.which("fewstep") or path.stem != "fewstep" else str(path)
