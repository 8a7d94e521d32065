"""`python -m studies.results`."""

import signal
import sys

from fewstep.cli import main_of
from studies.results.config import ResultsConfig
from studies.results.run import run

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # the drawing processes end with it
    sys.exit(main_of(ResultsConfig, run))
