"""Measure the pieces that were asked for, and write the page after each."""

from typing import Any

from fewstep.io import cache_dir, read_json, write_bytes, write_json
from studies.results.config import PIECES, ResultsConfig
from studies.results.jobs import draw, measured, say, share_cores
from studies.results.page import page, readme
from studies.results.pictures import pictures_of
from studies.results.pieces import check_inputs, jobs_of, pieces_of, plain


def run(config: ResultsConfig) -> None:
    """Measure the pieces that were asked for, and write the page after each of them."""
    names = pieces_of(config.pieces)
    check_inputs(names)
    share_cores(config.processes)
    jobs = {name: jobs_of(config, name) for name in names}
    if config.rows == "plain":
        some = [plain(job) for of_piece in jobs.values() for job in of_piece.values()]
        draw(config, [job for job in some if job is not None])
        return
    figures = config.out.with_suffix(".json")
    document = read_json(figures, "figures") if figures.is_file() else {}
    draw(config, [job for of_piece in jobs.values() for job in of_piece.values()])
    for name, of_piece in jobs.items():
        say(f"measuring {name}")
        done = measured(config, list(of_piece.values()))
        found = {key: portable(slim(one.document)) for key, one in zip(of_piece, done, strict=True)}
        document = {piece: (document | {name: found})[piece] for piece in PIECES if piece in document or piece == name}
        pictures_of(config, name, of_piece)
        write_json(figures, document)
        write_bytes(config.out, page(document).encode())
    readme(document, config.out)
    print(page(document))


UNUSED = ("timesteps", "guidance_search", "eta", "gamma", "efficientnet_score", "efficientnet_distance", "clip_score")


def slim(document: dict[str, Any]) -> dict[str, Any]:
    """A comparison without what the page does not tell."""
    rows = [{key: value for key, value in row.items() if key not in UNUSED} for row in document["rows"]]
    return {"protocol": document["protocol"], "rows": rows}


def portable(value: Any) -> Any:
    """The same figures, the cache folder in them called what it is by default."""
    if isinstance(value, dict):
        return {key: portable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [portable(one) for one in value]
    return value.replace(str(cache_dir()), "~/.cache/fewstep") if isinstance(value, str) else value
