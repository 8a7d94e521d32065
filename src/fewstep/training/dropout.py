"""Dropout for LoRAs whose masks depend on the sample alone, as all random values of training do."""

import zlib
from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.training.draws import SampleId, generator


def sample_masking(x: Tensor, rate: float, seed: int) -> Callable[[str, Tensor], Tensor]:
    """A function of a layer's name and input that sets a share `rate` of the input's features to 0.

    A feature is set to 0 in all places of a picture, and the others are divided by 1 - rate. So a mask is small, and is
    drawn on the CPU: it is the same on every device, in every division of a batch, and when checkpointing runs a layer
    again.
    x: the network's noisy input (B, ...). Its first values are of the visit's own noise, and stand for the visit.
    """
    bits = x.detach().flatten(1)[:, :2].float().contiguous().view(torch.int64).flatten().tolist()

    def masked(name: str, inputs: Tensor) -> Tensor:
        features = 1 if inputs.ndim == 4 else inputs.ndim - 1
        shape = [len(inputs), *(1,) * (inputs.ndim - 1)]
        shape[features] = inputs.shape[features]
        layer = zlib.crc32(name.encode())
        masks = [torch.rand(shape[features], generator=generator(SampleId(seed, of, layer))) >= rate for of in bits]
        return inputs * torch.stack(masks).view(shape).to(inputs) / (1 - rate)

    return masked
