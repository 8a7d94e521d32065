"""Measure the pieces that were asked for, and write the page after each."""

from typing import Any

from fewstep.io import cache_dir, read_json, write_bytes, write_json
from studies.results.config import PIECES, ResultsConfig
from studies.results.jobs import say, share_cores
from studies.results.page import page
from studies.results.pieces import MEASURED, check_inputs, pieces_of


def run(config: ResultsConfig) -> None:
    """Measure the pieces that were asked for, and write the page after each of them."""
    names = pieces_of(config.pieces)
    check_inputs(names)
    share_cores(config.processes)
    figures = config.out.with_suffix(".json")
    document = read_json(figures, "figures") if figures.is_file() else {}
    for name in names:
        say(f"measuring {name}")
        document[name] = portable(MEASURED[name](config))
        document = {piece: document[piece] for piece in PIECES if piece in document}
        write_bytes(config.out, page(document).encode())
        write_json(figures, document)
    print(page(document))


def portable(value: Any) -> Any:
    """The same figures, the cache folder in them called what it is by default."""
    if isinstance(value, dict):
        return {key: portable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [portable(one) for one in value]
    return value.replace(str(cache_dir()), "~/.cache/fewstep") if isinstance(value, str) else value
