"""`fewstep compare`: a table of ways to sample, with the protocol of the measurement."""

from fewstep.commands.result import Result
from fewstep.configs import CompareConfig
from fewstep.evaluate.compare import compare as compare_rows
from fewstep.evaluate.compare import markdown
from fewstep.events import note


def compare(config: CompareConfig) -> Result:
    """The table and its protocol. config.out holds them and the pictures."""
    document = compare_rows(config)
    note(f"written to {config.out}; see {config.out / 'report.html'}")
    return Result(document, markdown(document))
