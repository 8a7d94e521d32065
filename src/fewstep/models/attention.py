"""Attention in bf16 on a CPU, by matrix products, which use its bf16 instructions. torch's own kernel does not."""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

SCORES = 2**21  # of one block, at most (but one row at least): 4 MiB in bf16
EDGE = 2**23  # queries x keys x width of a head; torch's kernel is as fast or faster for smaller ones


def use_attention(network: Any) -> None:
    """Have a network of diffusers use `attention` in place of torch's. Other attention processors of it stay."""
    for module in network.modules():
        if type(getattr(module, "processor", None)) is AttnProcessor2_0:
            module.set_processor(AttentionProcessor())


class AttentionProcessor(AttnProcessor2_0):  # type: ignore[misc]
    """diffusers' usual attention processor, with `attention` in it. It changes nothing where that is torch's."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """The result for hidden_states (B, N, C) or (B, C, H, W), of the same shape."""
        unused = (attention_mask, attn.spatial_norm, attn.norm_cross, attn.norm_q, attn.norm_k)  # by Stable Diffusion
        if any(x is not None for x in unused):
            result: Tensor = super().__call__(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb, **options
            )
            return result
        x = hidden_states.flatten(2).transpose(1, 2) if hidden_states.ndim == 4 else hidden_states
        if attn.group_norm is not None:
            x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
        read = x if encoder_hidden_states is None else encoder_hidden_states
        attended = attention(heads(attn, attn.to_q(x)), heads(attn, attn.to_k(read)), heads(attn, attn.to_v(read)))
        x = attn.to_out[1](attn.to_out[0](attended.transpose(1, 2).flatten(2)))
        if hidden_states.ndim == 4:
            x = x.transpose(-1, -2).reshape(hidden_states.shape)
        return (x + hidden_states if attn.residual_connection else x) / attn.rescale_output_factor  # type: ignore[no-any-return]


def heads(attn: Any, x: Tensor) -> Tensor:
    """x (B, N, C) split into heads: (B, heads, N, C / heads)."""
    return x.view(*x.shape[:2], attn.heads, -1).transpose(1, 2)


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(D)) V, (B, heads, N, D), for Q of this shape and K and V (B, heads, M, D).

    It is F.scaled_dot_product_attention, except for large matrices in bf16 on a CPU.
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and not recorded() and work(query, key) > EDGE:
        return BlockedAttention.apply(query, key, value)  # type: ignore[no-any-return, no-untyped-call]
    return F.scaled_dot_product_attention(query, key, value)


def recorded() -> bool:
    """Whether torch records a graph for a compiler, which knows attention by torch's own function."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


def work(query: Tensor, key: Tensor) -> int:
    """Products in the scores of one head."""
    return query.shape[2] * key.shape[2] * query.shape[3]


class BlockedAttention(torch.autograd.Function):
    """Attention of one head and one block of queries at a time; only Q, K and V are kept for the backward pass.

    The scores take two blocks of memory in the forward pass and three in the backward pass, which computes them again.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, heads, N, D). In memory, heads lie next to each other, as the layer after attention takes them."""
        ctx.save_for_backward(query, key, value)
        out = empty_heads(query)
        scaled = query * query.shape[-1] ** -0.5
        memory = block_memory(query, key)
        for head in heads_of(query):
            q, k_t, v = scaled[head], key[head].t().contiguous(), value[head].contiguous()
            for rows in blocks_of(q, k_t):
                out[head][rows] = probabilities(q[rows], k_t, memory) @ v
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of Q, K and V. Those of K and V are summed over blocks in float32 at least."""
        query, key, value = ctx.saved_tensors
        of_query, of_key, of_value = (empty_heads(x) for x in (query, key, value))
        scale = query.shape[-1] ** -0.5
        memory = block_memory(query, key)
        for head in heads_of(query):
            q, k, v_t = query[head] * scale, key[head].contiguous(), value[head].t().contiguous()
            k_t, given = k.t().contiguous(), gradient[head].contiguous()
            sums = torch.zeros(2, *k.shape, dtype=torch.promote_types(k.dtype, torch.float32))
            for rows in blocks_of(q, k_t):
                p = probabilities(q[rows], k_t, memory)
                sums[1] += p.t() @ given[rows]
                of_p = torch.mm(given[rows], v_t, out=memory[0][: len(p)])
                of_scores = torch._softmax_backward_data(of_p, p, -1, p.dtype)
                of_query[head][rows] = (of_scores @ k) * scale
                sums[0] += of_scores.t() @ q[rows]
            of_key[head], of_value[head] = sums
        return of_query, of_key, of_value


def probabilities(q: Tensor, k_t: Tensor, memory: Tensor) -> Tensor:
    """softmax(Q K^T) (rows, M), in the second block of the memory; the scores are in the first."""
    scores, p = memory[:, : len(q)]
    return torch.softmax(torch.mm(q, k_t, out=scores), -1, out=p)


def empty_heads(x: Tensor) -> Tensor:
    """Memory for a tensor like x (B, heads, N, D), ordered as (B, N, heads, D)."""
    return torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def heads_of(x: Tensor) -> Iterator[tuple[int, int]]:
    """The indices of the heads of x (B, heads, N, D)."""
    return ((row, head) for row in range(x.shape[0]) for head in range(x.shape[1]))


def rows_of(keys: int) -> int:
    """The rows of a block."""
    return max(1, SCORES // keys)


def block_memory(query: Tensor, key: Tensor) -> Tensor:
    """Memory for two blocks of scores. Blocks that are allocated anew cost as much time as attention itself."""
    queries, keys = query.shape[2], key.shape[2]
    return query.new_empty(2, min(queries, rows_of(keys)), keys)


def blocks_of(q: Tensor, k_t: Tensor) -> Iterator[slice]:
    """The blocks of rows of one head's Q (N, D), for its K^T (D, M)."""
    rows = rows_of(k_t.shape[1])
    return (slice(i, i + rows) for i in range(0, len(q), rows))
