"""`fewstep compare`: ways to sample, in one table with its protocol."""

from fewstep.commands.result import Result
from fewstep.configs import CompareConfig
from fewstep.evaluate.compare import compare as compare_rows
from fewstep.evaluate.compare import markdown
from fewstep.events import note


def compare(config: CompareConfig) -> Result:
    """The table and its protocol; they and the pictures are in config.out."""
    document = compare_rows(config)
    note(f"written to {config.out}; see {config.out / 'report.html'}")
    return Result(document, markdown(document))
