"""`python -m studies.methods`."""

import signal
import sys

from fewstep.cli import main_of
from studies.methods.config import MethodsConfig
from studies.methods.run import run

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the runs keep their checkpoints
    sys.exit(main_of(MethodsConfig, run))
