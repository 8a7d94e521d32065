"""What rounding takes from a LoRA: W0 + Delta W is kept in the type of W0, whose steps may be larger than Delta W."""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

ROWS = 16  # of a layer, evenly spread, that are looked at: all of them would take as long as the folding itself
BOUND = 0.05  # the lost share above which a person is told


class Rounding(NamedTuple):
    """Of one layer, how much of Delta W has come into the weight W' that is kept; float32 scalars."""

    dtype: torch.dtype  # of W0 and W'
    kept: Tensor  # <W' - W0, Delta W>, summed over the whole layer, as its rows tell
    whole: Tensor  # <Delta W, Delta W>, likewise


def some_rows(weight: Tensor) -> slice:
    """At most ROWS rows of a weight (out, ...), evenly spread."""
    return slice(None, None, math.ceil(len(weight) / ROWS) or 1)


def rounding(before: Tensor, after: Tensor, added: Tensor, out: int) -> Rounding:
    """What rows of a layer tell of it. before: W0 and after: W', in the type they are kept in; added: Delta W, float32.

    All (rows, ...), of a layer with `out` rows.
    """
    share = out / max(len(added), 1)
    moved = after.float() - before.float()
    return Rounding(after.dtype, share * (moved * added).sum(), share * added.square().sum())


def lost_share(layers: Iterable[Rounding]) -> dict[torch.dtype, float]:
    """1 - sum <W' - W0, Delta W> / sum <Delta W, Delta W> over all layers kept in a type, by the type.

    0: all has come in, on average; 1: nothing has. Types whose layers change by nothing are left out.
    """
    kept: dict[torch.dtype, float] = {}
    whole: dict[torch.dtype, float] = {}
    for dtype, part, of in layers:
        kept[dtype] = kept.get(dtype, 0.0) + float(part)
        whole[dtype] = whole.get(dtype, 0.0) + float(of)
    return {dtype: 1 - kept[dtype] / total for dtype, total in whole.items() if total > 0}


def loss_note(lost: Mapping[torch.dtype, float], remedy: str) -> str | None:
    """What a person is told when a type loses more than BOUND, of the type that loses most; else None."""
    dtype = max(lost, key=lost.__getitem__, default=torch.float32)
    share = lost.get(dtype, 0.0)
    if not share > BOUND:
        return None
    name = str(dtype).removeprefix("torch.")
    return f"{share:.0%} of what the LoRAs add is lost: {name} weights round it away; {remedy}"
