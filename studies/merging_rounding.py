"""The share of a LoRA that folding into weights of few bits loses, for docs/merging.md."""

import torch
from torch import nn

from fewstep.lora.low_rank import Adapter, LowRank
from fewstep.models.plugging import Folding

TYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
}
SIZES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)  # ||Delta W|| / ||W0||
SIDE, RANK = 512, 8


def lost(dtype: torch.dtype, size: float) -> float:
    """The lost share of a random LoRA with ||Delta W|| = size ||W0||, in normal weights of deviation 0.03."""
    draw = torch.Generator().manual_seed(0)
    layer = nn.Linear(SIDE, SIDE, bias=False).requires_grad_(False)
    layer.weight.data = (0.03 * torch.randn(SIDE, SIDE, generator=draw)).to(dtype)
    A, B = torch.randn(RANK, SIDE, generator=draw), torch.randn(SIDE, RANK, generator=draw)
    update = LowRank(A, B * float(size * layer.weight.float().norm() / (B @ A).norm()))
    folding = Folding({"layer": layer})
    folding.plug([(1.0, Adapter({"layer": update}))])
    return folding.lost[dtype]


def cell(dtype: torch.dtype, size: float) -> str:
    """The share as text for the table. 0 means below half a percent."""
    share = lost(dtype, size)
    return "0" if abs(share) < 0.005 else f"{100 * share:.0f} %"


def table() -> str:
    """The table of every size and every type, in Markdown."""
    head = " | ".join(["‖ΔW‖ / ‖W0‖", *TYPES])
    rows = [f"{size:g} | " + " | ".join(cell(dtype, size) for dtype in TYPES.values()) for size in SIZES]
    return "\n".join(f"| {line} |" for line in (head, " | ".join("---" for _ in range(len(TYPES) + 1)), *rows))
