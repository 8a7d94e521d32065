"""`fewstep serve`: pictures over HTTP."""

import os

from fewstep.commands.result import Result
from fewstep.configs import ServeConfig
from fewstep.errors import FewstepError
from fewstep.events import note

PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")
KEY = "FEWSTEP_API_KEY"


def serve(config: ServeConfig) -> Result:
    """Serve until Ctrl-C or SIGTERM, then finish what was begun."""
    if config.api_key is None and os.environ.get(KEY):
        config = config.model_copy(update={"api_key": os.environ[KEY]})
    config.check_open()
    try:
        from fewstep.server.running import run
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        raise FewstepError(f"serve needs {error.name}", 'pip install "fewstep[serve]"') from None
    address = run(config, lambda address: note(f"serving {config.model} at {address}; Ctrl-C stops"))
    return Result({"address": address}, "stopped")
