"""`fewstep tune`: how much of a style LoRA and of an acceleration LoRA to add."""

from fewstep.commands.result import Result
from fewstep.configs import TuneConfig
from fewstep.evaluate.tune import markdown
from fewstep.evaluate.tune import tune as tune_weights
from fewstep.events import note


def tune(config: TuneConfig) -> Result:
    """The pairs of weights that were tried, and the best; they and the sheets are in config.out."""
    document = tune_weights(config)
    note(f"written to {config.out}; look at {config.out / 'sheet.png'}")
    return Result(document, markdown(document))
