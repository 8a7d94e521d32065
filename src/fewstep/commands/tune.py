"""`fewstep tune`: finds weights for a style LoRA and an acceleration LoRA that are added up."""

from fewstep.commands.result import Result
from fewstep.configs import TuneConfig
from fewstep.evaluate.tune import markdown
from fewstep.evaluate.tune import tune as tune_weights
from fewstep.events import note


def tune(config: TuneConfig) -> Result:
    """The tried pairs of weights, and the best one. config.out holds them and the sheets."""
    document = tune_weights(config)
    note(f"written to {config.out}; look at {config.out / 'sheet.png'}")
    return Result(document, markdown(document))
