"""Random updates to draw laws from."""

from collections.abc import Mapping, Sequence

import torch
from hypothesis import strategies as st
from torch import nn

from fewstep.families import ModuleShape
from fewstep.lora.low_rank import Adapter, LowRank, Weighting
from fewstep.lora.rounding import Rounding
from fewstep.models.plugging import Folding

shapes = st.builds(ModuleShape, st.integers(1, 9), st.integers(1, 9), st.sampled_from([0, 1, 3]))
ranks, seeds = st.integers(1, 12), st.integers(0, 2**31)


def random_update(shape: ModuleShape, rank: int, seed: int, dtype: torch.dtype = torch.float64) -> LowRank:
    """Standard normal factors."""
    draw = torch.Generator().manual_seed(seed)
    kernel, one = ((shape.kernel,) * 2, (1, 1)) if shape.kernel else ((), ())
    A = torch.randn(rank, shape.in_, *kernel, generator=draw, dtype=dtype)
    return LowRank(A, torch.randn(shape.out, rank, *one, generator=draw, dtype=dtype))


def distance(a: LowRank, b: LowRank) -> float:
    """||Delta W_a - Delta W_b||_F."""
    return float((a.delta() - b.delta()).norm())


def fold(layers: Mapping[str, nn.Module], terms: Sequence[tuple[Weighting, Mapping[str, LowRank]]]) -> list[Rounding]:
    """Add updates into layers; how much of each layer's the rounding lets in."""
    folding = Folding(layers)
    folding.plug([(weight, Adapter(updates)) for weight, updates in terms])
    return list(folding._roundings.values())
