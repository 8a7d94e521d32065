"""Normalized attention guidance (NAG, arXiv 2505.21179): a negative prompt that works at guidance 1."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CROSS = ".attn2.processor"  # how the processors of attention to the text are named


def guided_attention(positive: Tensor, negative: Tensor, scale: float, tau: float, alpha: float) -> Tensor:
    """What attention to the prompt becomes beside attention to the negative prompt, (B, N, C) each (eqs. 7 to 10).

    The difference is extrapolated, Z = scale Z+ - (scale - 1) Z-; where its L1 norm is more than tau times Z+'s it is
    cut to that; alpha of it is mixed with 1 - alpha of Z+. At scale 1 it is Z+.
    """
    extrapolated = scale * positive - (scale - 1) * negative
    norms = (z.abs().sum(-1, keepdim=True) for z in (extrapolated, positive))
    ratio = torch.div(*norms).nan_to_num(tau)
    return alpha * extrapolated * (ratio.clamp(max=tau) / ratio.clamp(min=1e-6)) + (1 - alpha) * positive


@dataclass(frozen=True)
class GuidedAttention:
    """diffusers' attention processor with NAG: the text is (2B, L, D), the prompts' first, then the negative ones'.

    With (B, L, D), the prompts' alone, it is ordinary attention.
    """

    scale: float
    tau: float = 2.5
    alpha: float = 0.5

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        """hidden_states (B, N, C) of a transformer block -> attended, of the same shape."""
        query = heads(attn, attn.to_q(hidden_states))
        attentions = [
            F.scaled_dot_product_attention(query, heads(attn, attn.to_k(text)), heads(attn, attn.to_v(text)))
            for text in torch.split(encoder_hidden_states, len(hidden_states))
        ]
        attended, *negative = (z.transpose(1, 2).flatten(2) for z in attentions)
        if negative:
            attended = guided_attention(attended, negative[0], self.scale, self.tau, self.alpha)
        output: Tensor = attn.to_out[0](attended)
        return output


def heads(attn: Any, x: Tensor) -> Tensor:
    """(B, N, C) -> (B, heads, N, C / heads)."""
    return x.view(*x.shape[:2], attn.heads, -1).transpose(1, 2)


@contextmanager
def guided_attention_of(unet: Any, scale: float) -> Iterator[None]:
    """Let the UNet's attention to the text be guided within the block; at scale 1 nothing is changed."""
    if scale == 1:
        yield
        return
    before = unet.attn_processors
    guided = {name: GuidedAttention(scale) for name in before if name.endswith(CROSS)}
    unet.set_attn_processor(before | guided)
    try:
        yield
    finally:
        unet.set_attn_processor(dict(before))
