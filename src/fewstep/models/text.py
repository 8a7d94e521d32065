"""Turns prompts into the network's conditioning, with one CLIP text encoder or SDXL's two."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.diffusion.guidance import Conditioning


def tokens_of(prompts: Sequence[str], tokenizer: Any, encoder: Any) -> Tensor:
    """Token ids (B, L) on the encoder's device, padded or cut to its length."""
    length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    tokens = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    ids: Tensor = tokens.input_ids.to(encoder.device)
    return ids


def embedded(prompts: Sequence[str], tokenizer: Any, encoder: Any) -> Conditioning:
    """The last hidden states of one text encoder, which SD 1.x and 2.x use."""
    return Conditioning(encoder(tokens_of(prompts, tokenizer, encoder))[0].float())


def embedded_twice(
    prompts: Sequence[str], tokenizers: Sequence[Any], encoders: Sequence[Any], zero_empty: bool
) -> Conditioning:
    """The second-last hidden states of two text encoders, concatenated, and the second's pooled text.

    SDXL (arXiv 2307.01952, section 2.1). zero_empty: an empty prompt becomes zeros, as the base model expects.
    """
    outputs = [
        encoder(tokens_of(prompts, tokenizer, encoder), output_hidden_states=True)
        for tokenizer, encoder in zip(tokenizers, encoders, strict=True)
    ]
    conditioning = Conditioning(
        torch.cat([output.hidden_states[-2].float() for output in outputs], dim=-1), outputs[1][0].float()
    )
    if not zero_empty:
        return conditioning
    empty = torch.tensor([not prompt for prompt in prompts], device=conditioning.text.device)
    return conditioning.map(torch.zeros_like).where(empty, conditioning)


def no_text(batch: int) -> Conditioning:
    """The conditioning of a network that takes no text: embeddings of no tokens, (B, 0, 0)."""
    return Conditioning(torch.zeros(batch, 0, 0))


def sizes_of(height: int, width: int) -> Tensor:
    """SDXL's micro-conditioning (1, 6) for a picture that was neither scaled nor cropped."""
    return torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
