"""Keeping other libraries quiet while they load parts of a model; afterwards they talk as before."""

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

LIBRARIES = (diffusers_logging, transformers_logging)


@contextmanager
def quiet() -> Iterator[None]:
    """Let diffusers and transformers print nothing below an error, and no bars, within the block or function.

    What matters of a folder's faults is raised, in our words.
    """
    before = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library in LIBRARIES]
    for library in LIBRARIES:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, verbosity, bars in before:
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()
