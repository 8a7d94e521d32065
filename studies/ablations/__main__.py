"""`python -m studies.ablations`."""

import signal
import sys

from fewstep.cli import main_of
from studies.ablations.config import AblationsConfig
from studies.ablations.run import run

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the runs keep their checkpoints
    sys.exit(main_of(AblationsConfig, run))
