"""Packages that only some options of training need."""

import warnings
from typing import Any

from fewstep.configs import AdapterConfig
from fewstep.errors import UsageError, option


def bitsandbytes_for(field: str, value: str, instead: str) -> Any:
    """The package bitsandbytes, for this value of an option. Raises UsageError if it is not installed.

    instead: a value that needs no package.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about kernels of other machines
            import bitsandbytes  # an extra, and a slow import
    except ImportError:
        raise UsageError(
            f"{option(field)} {value} needs bitsandbytes, which is not installed",
            f'pip install "fewstep[8bit]", or use {option(field)} {instead}',
        ) from None
    return bitsandbytes


def check_packages(config: AdapterConfig) -> None:
    """Raise UsageError for an option whose package is not installed, before anything is read."""
    if config.frozen_weights == "nf4":
        bitsandbytes_for("frozen_weights", "nf4", "int8")
    if config.optimizer == "adamw-8bit":
        bitsandbytes_for("optimizer", "adamw-8bit", "adamw")
