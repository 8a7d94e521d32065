"""The best guidance of a row: the one of a grid whose images have the smallest KID to real images."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fewstep.configs import CompareConfig
from fewstep.errors import FewstepError, Line, UsageError, option
from fewstep.evaluate.candidates import numbers_in
from fewstep.evaluate.measure import Tools, kid_of
from fewstep.evaluate.row_pictures import RowPictures
from fewstep.evaluate.rows import RowSpec
from fewstep.evaluate.table import Row
from fewstep.metrics.features import features_of
from fewstep.metrics.kid import FEWEST, KID

LARGEST = 50  # the largest guidance that `sample` accepts
SCORE = "KID to the reference; the images of the best guidance are part of the row's"
HINT = "write a guidance instead, such as @3"


class TriedGuidance(NamedTuple):
    """A guidance, and the KID of its images to real images."""

    guidance_scale: float
    kid: KID


def grid_of(text: str) -> tuple[float, ...]:
    """The guidance scales in a text such as 1,1.5,2, ascending. Raises UsageError that names a wrong one."""

    def refusal(word: str) -> UsageError:
        what = f"{option('guidance_grid')} {text}: {word!r} is not a guidance scale from 0 to {LARGEST}"
        return UsageError(what, f"write {option('guidance_grid')} 1,2,4,8")

    return tuple(sorted(numbers_in(text, lambda value: 0 <= value <= LARGEST, refusal)))


def check_wish(config: CompareConfig, specs: Sequence[RowSpec]) -> None:
    """Raise UsageError for a row that asks for the best guidance if the config cannot find it."""
    grid_of(config.guidance_grid)
    for spec in specs:
        if spec.best and config.reference is None:
            raise UsageError(
                f"{option('rows')} {spec.text}: the best guidance is found by KID to real images, but"
                f" {option('reference')} names none",
                f"name real images with {option('reference')}, or {HINT}",
            )
        if spec.best and config.images < 2 * FEWEST:
            raise UsageError(
                f"{option('rows')} {spec.text}: the best guidance is found by KID, which needs {2 * FEWEST} images, but"
                f" {option('images')} is {config.images}",
                f"draw more, or {HINT}",
            )


def check_tools(specs: Sequence[RowSpec], tools: Tools) -> None:
    """Raise FewstepError, with the reasons that `load_tools` noted, if a row needs KID but KID cannot be computed."""
    for spec in specs:
        if spec.best and (tools.real is None or len(tools.real.features) < 2 * FEWEST):
            why = "; ".join(note.marked for note in tools.notes if "KID left out" in note)
            raise FewstepError(f"{option('rows')} {spec.text}: the best guidance is found by KID: {why}", HINT)


def images_of(config: CompareConfig) -> int:
    """The number of images drawn at each guidance of the grid."""
    return min(config.search_images, config.images)


def tried(config: CompareConfig, tools: Tools, draw: Callable[[float, int], RowPictures]) -> tuple[TriedGuidance, ...]:
    """Each guidance of the grid, with the KID of the first images from `draw(guidance, count)`.

    They are drawn in whole batches of the row, so that no image of the best guidance is drawn twice.
    """
    assert tools.inception
    assert tools.real
    count, found = images_of(config), []
    whole = -(-count // config.batch_size) * config.batch_size
    for guidance_scale in grid_of(config.guidance_grid):
        pictures = draw(guidance_scale, min(whole, config.images * config.seed_sets))
        kid = kid_of(features_of(tools.inception, pictures)[:count], tools.real.features)
        assert kid  # check_wish and check_tools have made sure
        found.append(TriedGuidance(guidance_scale, kid))
    return tuple(found)


def best_of(search: Sequence[TriedGuidance]) -> float:
    """The guidance with the smallest KID; for equal KIDs, the smallest guidance."""
    return min(search, key=lambda one: one.kid.value).guidance_scale


def entries(search: Sequence[TriedGuidance]) -> list[dict[str, float]]:
    """The search, as in a row of table.json."""
    return [
        {"guidance_scale": scale, "kid": kid.value, "kid_low": kid.low, "kid_high": kid.high} for scale, kid in search
    ]


def at_the_end(row: str, search: Sequence[Mapping[str, float]]) -> list[Line]:
    """A note if the row's best guidance is the first or last of several. search: from `entries`."""
    scales = [one["guidance_scale"] for one in search]
    best = min(search, key=lambda one: one["kid"])["guidance_scale"]
    if len(scales) == 1 or best not in (scales[0], scales[-1]):
        return []
    end = f"is at an end of {option('guidance_grid')}; the best may lie outside"
    return [Line(f"{row}: the best guidance, {best:g}, {end}")]


def protocol_of(config: CompareConfig, rows: Sequence[Row]) -> dict[str, Any] | None:
    """How the best guidance was found, as in table.json; None if no row asked for it."""
    searches = {row["row"]: row["guidance_search"] for row in rows if row["guidance_search"]}
    return (
        {
            "grid": list(grid_of(config.guidance_grid)),
            "images": images_of(config),
            "score": SCORE,
            "notes": [note for row, search in searches.items() for note in at_the_end(row, search)],
        }
        if searches
        else None
    )


def in_words(search: dict[str, Any] | None) -> list[str]:
    """The same in words, one line each."""
    if search is None:
        return []
    grid = ", ".join(f"{scale:g}" for scale in search["grid"])
    return [
        f"guidance of rows with @best: of {grid} the one with the smallest KID to the reference, over the first"
        f" {search['images']} images of the first seed set; these are among the row's own, which favours"
        " its KID a little",
        *search["notes"],
    ]
