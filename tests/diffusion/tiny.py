"""A small fixed nonlinear network of x, t and text: enough for a solver to be told from another."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from fewstep.diffusion.guidance import Conditioning


@dataclass
class TinyNetwork:
    """tanh of a convolution of x, moved by t and by the text; `rows` lists the batch of every call."""

    channels: int = 4
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        g = torch.Generator().manual_seed(3)
        c = self.channels
        self.first = (torch.randn(c, c, 3, 3, generator=g, dtype=torch.float64) * 0.3).to(self.dtype)
        self.second = (torch.randn(c, c, 3, 3, generator=g, dtype=torch.float64) * 0.1).to(self.dtype)
        self.rows: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        self.rows.append(len(x))
        u = (t.to(x.dtype) / 1000).view(-1, 1, 1, 1)
        text = conditioning.text.to(x.dtype).mean(1)[:, :, None, None]
        hidden = torch.tanh(conv2d(x, self.first, padding=1) + u + text)
        return u * x + conv2d(hidden, self.second, padding=1)


def text(batch: int, value: float, channels: int = 4) -> Conditioning:
    """A conditioning of two tokens: what `value` says, differently for every image."""
    tokens = torch.linspace(-1, 1, 2 * channels, dtype=torch.float64).view(1, 2, channels)
    shift = 0.2 * torch.arange(batch, dtype=torch.float64).view(-1, 1, 1)
    return Conditioning(tokens + value + shift)
