"""The methods of distillation by the names that people type. Each file in this folder is found without being listed.

A file names its methods in a dict METHODS. That makes them choices of `fewstep distill --method`, with their docstrings
as help. Fine-tuning has one method, the denoising loss.
"""

from importlib import import_module
from pkgutil import iter_modules

from fewstep.configs import DistillConfig
from fewstep.errors import UsageError, option
from fewstep.training.methods.method import OF_METHODS, Method


def _methods() -> dict[str, type[Method]]:
    files = [import_module(f"{__name__}.{file.name}") for file in iter_modules(__path__)]
    return {name: method for file in files for name, method in getattr(file, "METHODS", {}).items()}


METHODS = _methods()

__all__ = ["METHODS", "Method", "method_of"]


def method_of(config: DistillConfig) -> type[Method]:
    """The class of the method that `config` names. Raises UsageError for options that have no effect on the method."""
    kind = METHODS[config.method]
    kind.check(config)
    unread = [name for name in OF_METHODS if name in config.model_fields_set - kind.reads]
    if unread:
        usual = DistillConfig.model_fields["method"].default
        others = [name for name, other in METHODS.items() if other.reads.issuperset(unread)]
        raise UsageError(
            f"{', '.join(map(option, sorted(unread)))}: no effect with {option('method')} {config.method}",
            f"leave it out, or use {option('method')} {usual if usual in others else others[0]}"
            if others
            else "leave it out",
        )
    return kind
