"""Random updates to draw laws from."""

import torch
from hypothesis import strategies as st

from fewstep.families import ModuleShape
from fewstep.lora.low_rank import LowRank

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
