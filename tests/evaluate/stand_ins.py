"""Quick stand-ins for the networks that measure images."""

import torch
from torch import nn
from torch.nn import functional as F

DIM = 12  # of the features; FID then needs 13 images


class Features(nn.Module):
    """A stand-in for a network: mean colours of a 2 x 2 grid, (B, 12)."""

    dim = DIM
    sha256 = 64 * "0"

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label
        self.weight = nn.Parameter(torch.zeros(()))

    @torch.no_grad()
    def forward(self, pixels):
        return F.adaptive_avg_pool2d(pixels, 2).flatten(1)

    def probabilities(self, features):
        return features.softmax(dim=-1)
