"""`fewstep serve`: pictures over HTTP."""

import os

from fewstep.commands.result import Result
from fewstep.configs import ServeConfig
from fewstep.configs.serving import LOOPBACK
from fewstep.errors import FewstepError, UsageError, option
from fewstep.events import note

PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")
KEY = "FEWSTEP_API_KEY"


def serve(config: ServeConfig) -> Result:
    """Serve until Ctrl-C or SIGTERM, then finish what was begun."""
    if config.api_key is None and os.environ.get(KEY):
        config = config.model_copy(update={"api_key": os.environ[KEY]})
    check_open(config)
    try:
        from fewstep.server.running import run
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        raise FewstepError(f"serve needs {error.name}", 'pip install "fewstep[serve]"') from None
    address = run(config, lambda address: note(f"serving {config.model} at {address}; Ctrl-C stops"))
    return Result({"address": address}, "stopped")


def check_open(config: ServeConfig) -> None:
    """Raise UsageError if other machines could draw and nothing says that they may."""
    if config.host not in LOOPBACK and not (config.api_key or config.without_key):
        raise UsageError(
            f"{option('host')} {config.host} can be reached from other machines",
            f"give {option('api_key')}, or {option('without_key')} to let everyone draw",
        )
