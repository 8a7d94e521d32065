"""LPIPS, the learned perceptual distance (arXiv 1801.03924), as a metric and as a training loss."""

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.metrics.weights import Net, lpips_weights


class Backbone(NamedTuple):
    """A stack of convolutions with ReLUs. LPIPS compares the features after some of them."""

    channels: tuple[int, ...]  # input channels, then the output channels of each convolution
    first: tuple[int, int, int]  # kernel, stride and padding of the first convolution
    kernels: tuple[int, ...]  # kernels of the other convolutions, which have stride 1 and keep the size
    pool: int  # kernel of the max pooling, which has stride 2
    pool_before: frozenset[int]  # indices of the convolutions that follow a pooling
    taps: tuple[int, ...]  # indices of the convolutions whose features are compared


BACKBONES: dict[Net, Backbone] = {
    "alex": Backbone(
        channels=(3, 64, 192, 384, 256, 256),
        first=(11, 4, 2),
        kernels=(5, 3, 3, 3),
        pool=3,
        pool_before=frozenset({1, 2}),
        taps=(0, 1, 2, 3, 4),
    ),
    "vgg": Backbone(
        channels=(3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512),
        first=(3, 1, 1),
        kernels=(3,) * 12,
        pool=2,
        pool_before=frozenset({2, 4, 7, 10}),
        taps=(1, 3, 6, 9, 12),
    ),
}


class LPIPS(nn.Module):
    """Perceptual distance of images (arXiv 1801.03924, eq. 1). Its weights are frozen; gradients flow to the images.

    Features are computed in autocast's dtype if it is on, the distance in float32 or better.
    The smallest allowed side of an image is 31 pixels for AlexNet, 16 for VGG16.
    """

    shift: Tensor  # (1, 3, 1, 1) mean of the training images, for pixels in [-1, 1]
    scale: Tensor  # (1, 3, 1, 1) their standard deviation

    def __init__(self, net: Net = "alex") -> None:
        super().__init__()
        self.backbone = BACKBONES[net]
        shapes = [self.backbone.first, *((k, 1, k // 2) for k in self.backbone.kernels)]
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, kernel, stride, padding)
            for (i, o), (kernel, stride, padding) in zip(pairwise(self.backbone.channels), shapes, strict=True)
        )
        self.heads = nn.ParameterList(
            torch.zeros(1, self.backbone.channels[tap + 1], 1, 1) for tap in self.backbone.taps
        )
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        self.register_buffer("shift", shift.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", scale.view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance of each pair, (B,), 0 for equal images. x, y: (B, 3, H, W) pixels in [-1, 1]."""
        distances = [
            (head * (f - g).square()).sum(dim=1).mean(dim=(1, 2))
            for head, f, g in zip(self.heads, self.features(x), self.features(y), strict=True)
        ]
        return torch.stack(distances).sum(dim=0)

    def features(self, x: Tensor) -> list[Tensor]:
        """Unit-length features (B, C_l, H_l, W_l) of each tapped layer. x: (B, 3, H, W) pixels in [-1, 1].

        The authors divide by |f| + 1e-10, whose gradient is NaN at f = 0. Here the divisor is max(|f|, 1e-10).
        """
        h, tapped = (x - self.shift) / self.scale, []
        for i, conv in enumerate(self.convs):
            if i in self.backbone.pool_before:
                h = F.max_pool2d(h, self.backbone.pool, stride=2)
            h = F.relu(conv(h))
            if i in self.backbone.taps:
                exact = h.to(torch.promote_types(h.dtype, torch.float32))
                tapped.append(F.normalize(exact, dim=1, eps=1e-10))
        return tapped


def load_lpips(device: torch.device | str = "cpu", net: Net = "alex") -> LPIPS:
    """LPIPS version 0.1 with the authors' linear heads, on `device`.

    AlexNet is the metric of their paper. VGG16 is slower; they recommend it as a training loss.
    """
    model = LPIPS(net)
    model.load_state_dict(lpips_weights(net))
    return model.to(device)
