"""Normalized attention guidance (NAG, arXiv 2505.21179): a negative prompt that works at guidance 1."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.models.attention import heads

CROSS = ".attn2.processor"  # end of the names of the processors of attention to the text


def guided_attention(positive: Tensor, negative: Tensor, scale: float, tau: float, alpha: float) -> Tensor:
    """Guided attention, from attention to the prompt Z+ and to the negative prompt Z-, (B, N, C) each (eqs. 7 to 10).

    Z = scale Z+ - (scale - 1) Z- extrapolates the difference. If the L1 norm of Z is more than tau times that of Z+, Z
    is scaled down to that. The result is alpha Z + (1 - alpha) Z+. At scale 1 it is Z+.
    """
    extrapolated = scale * positive - (scale - 1) * negative
    norms = (z.abs().sum(-1, keepdim=True) for z in (extrapolated, positive))
    ratio = torch.div(*norms).nan_to_num(tau)
    return alpha * extrapolated * (ratio.clamp(max=tau) / ratio.clamp(min=1e-6)) + (1 - alpha) * positive


@dataclass(frozen=True)
class GuidedAttention:
    """diffusers' attention processor with NAG. The text is (2B, L, D): the B prompts, then the B negative prompts.

    When the text is (B, L, D), the prompts alone, it computes ordinary attention.
    """

    scale: float
    tau: float = 2.5
    alpha: float = 0.5

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        """The result of attention for hidden_states (B, N, C) of a transformer block, of the same shape."""
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


@contextmanager
def guided_attention_of(unet: Any, scale: float) -> Iterator[None]:
    """Inside the block, guide the UNet's attention to the text. At scale 1 nothing changes."""
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
