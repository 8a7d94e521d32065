"""`python -m studies.limits`."""

import sys

from fewstep.cli import main_of
from studies.limits.run import LimitsConfig, run

if __name__ == "__main__":
    sys.exit(main_of(LimitsConfig, run))
