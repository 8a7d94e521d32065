"""DoRA as an update of one model: W' - W0 with W' = m (W0 + B A) / ||W0 + B A||. It holds for that model alone."""

from collections.abc import Collection

import torch
from torch import Tensor

from fewstep.lora.dialects import DORA_SCALE, MAGNITUDE
from fewstep.lora.factors import whole
from fewstep.lora.low_rank import LowRank

MAGNITUDES = (DORA_SCALE, MAGNITUDE)
ROWS, COLUMNS = 0, 1  # axis of W0 with one norm per entry: outputs, inputs


def magnitude_of(parts: Collection[str]) -> str | None:
    """The part of a module that holds a DoRA's norms; None for a LoRA."""
    return next((part for part in MAGNITUDES if part in parts), None)


def baked(update: LowRank, magnitude: Tensor, part: str, W0: Tensor) -> LowRank:
    """W' - W0, whole (DoRA, arXiv 2402.09353, eq. 5). Its rank is the smaller side of the matrix.

    magnitude: m, one norm per output or input of the layer, see `axis_of`. W0: (out, in) or (out, in, k, k), the
    weights that the DoRA was trained on; other weights give another update. Raises ValueError when the shapes do not
    fit together.
    """
    delta = update.delta()
    if W0.numel() != delta.numel() or W0.shape[0] != delta.shape[0]:
        raise ValueError(f"the model's weight is {tuple(W0.shape)}, the update is {tuple(delta.shape)}")
    W0 = W0.to(delta.device, torch.float32).view_as(delta)
    axis = axis_of(part, magnitude, delta)
    W = W0 + delta
    others = [dimension for dimension in range(W.ndim) if dimension != axis]
    norm = torch.linalg.vector_norm(W, dim=others, keepdim=True).clamp_min(torch.finfo(W.dtype).tiny)
    return whole(W * (magnitude.float().view_as(norm) / norm) - W0)


def axis_of(part: str, magnitude: Tensor, weight: Tensor) -> int:
    """The axis of the weight along which m runs; the shape of m decides it.

    PEFT keeps one norm per output: (out,) for a Linear, (1, out, 1, 1) for a Conv2d. LyCORIS and its followers keep one
    norm per output as (out, 1, ...), or, with `wd_on_output` off, one per input as (1, in, ...).
    """
    out, in_ = weight.shape[:2]
    if part == MAGNITUDE:
        fits = {ROWS: magnitude.numel() == out}
    else:
        size = tuple(magnitude.shape)
        ones = (1,) * (weight.ndim - 2)
        fits = {ROWS: size in {(out,), (out, 1), (out, 1, *ones)}, COLUMNS: size in {(1, in_), (1, in_, *ones)}}
    axis = next((axis for axis, there in fits.items() if there), None)
    if axis is None:
        raise ValueError(f"the magnitudes are {tuple(magnitude.shape)}, the weight is {tuple(weight.shape)}")
    return axis
