"""`fewstep export`: a model with its LoRAs folded in, ready for another program."""

from typing import Any

from fewstep.bridge.export import export as export_model
from fewstep.commands.result import Result
from fewstep.configs import ExportConfig


def export(config: ExportConfig) -> Result:
    """Export the model. The result describes the files in config.out."""
    facts = export_model(config)
    return Result(facts, "\n".join(f"{name.replace('_', ' '):<14}  {in_words(value)}" for name, value in facts.items()))


def in_words(value: Any) -> str:
    """A fact as text for people."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {error:.1e}" for name, error in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
