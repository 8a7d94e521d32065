"""The share of a LoRA that rounding loses. W0 + Delta W has the type of W0, which may be too coarse for Delta W."""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

ROWS = 16  # rows of a layer that are examined, evenly spread; all rows would take as long as the folding itself
BOUND = 0.05  # a note is given when a larger share is lost


class Rounding(NamedTuple):
    """How much of one layer's Delta W is in its stored weight W'. Float32 scalars, estimated from some rows."""

    dtype: torch.dtype  # type of W0 and W'
    kept: Tensor  # <W' - W0, Delta W> of the whole layer
    whole: Tensor  # <Delta W, Delta W> of the whole layer


def some_rows(weight: Tensor) -> slice:
    """At most ROWS rows of a weight (out, ...), evenly spread."""
    return slice(None, None, math.ceil(len(weight) / ROWS) or 1)


def rounding(before: Tensor, after: Tensor, added: Tensor, out: int) -> Rounding:
    """The rounding of a layer with `out` rows, estimated from some of them.

    before: W0, and after: W', in their stored type. added: Delta W, float32. All are (rows, ...).
    """
    share = out / max(len(added), 1)
    moved = after.float() - before.float()
    return Rounding(after.dtype, share * (moved * added).sum(), share * added.square().sum())


def lost_share(layers: Iterable[Rounding]) -> dict[torch.dtype, float]:
    """Type -> 1 - sum <W' - W0, Delta W> / sum <Delta W, Delta W>, over all layers stored in that type.

    0: nothing is lost, on average. 1: everything is lost. Types whose Delta W is zero are left out.
    """
    kept: dict[torch.dtype, float] = {}
    whole: dict[torch.dtype, float] = {}
    for dtype, part, of in layers:
        kept[dtype] = kept.get(dtype, 0.0) + float(part)
        whole[dtype] = whole.get(dtype, 0.0) + float(of)
    return {dtype: 1 - kept[dtype] / total for dtype, total in whole.items() if total > 0}


def loss_note(lost: Mapping[torch.dtype, float], remedy: str) -> str | None:
    """The note for the type that loses most, if it loses more than BOUND; else None."""
    dtype = max(lost, key=lost.__getitem__, default=torch.float32)
    share = lost.get(dtype, 0.0)
    if not share > BOUND:
        return None
    name = str(dtype).removeprefix("torch.")
    return f"{share:.0%} of what the LoRAs add is lost: {name} weights round it away; {remedy}"
