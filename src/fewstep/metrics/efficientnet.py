"""EfficientNet-Lite0 (arXiv 1905.11946, without squeeze-and-excitation, with ReLU6), used for its features."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH_NORM_EPS = 1e-3


class Stage(NamedTuple):
    """Blocks in a row. The first has the stride and changes the channels; the others have a skip connection."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int  # output channels


STEM_CHANNELS, FEATURES, CLASSES = 32, 1280, 1000
STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's padding: output size ceil(size / stride), an odd pixel at the bottom right."""

    def forward(self, x: Tensor) -> Tensor:
        """The output (B, C', ceil(H / stride), ceil(W / stride)) for x (B, C, H, W)."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        down, across = (max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[-2:])
        padded = F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))
        return super().forward(padded)


class Block(nn.Module):
    """An inverted residual (arXiv 1801.04381): expand, filter each channel, project. Batch norms are folded in."""

    def __init__(self, inputs: int, outputs: int, stage: Stage, stride: int) -> None:
        super().__init__()
        inner = inputs * stage.expansion
        self.expand = nn.Conv2d(inputs, inner, 1) if stage.expansion > 1 else None
        self.depthwise = SameConv(inner, inner, stage.kernel, stride, groups=inner)
        self.project = nn.Conv2d(inner, outputs, 1)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """The output (B, C', H / stride, W / stride) for x (B, C, H, W)."""
        inner = F.relu6(self.expand(x)) if self.expand is not None else x
        h: Tensor = self.project(F.relu6(self.depthwise(inner)))
        return x + h if self.skip else h


class EfficientNetLite0(nn.Module):
    """Maps images (B, 3, H, W), normalised by `(grey level - 127) / 128`, to pooled features (B, 1280)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, STEM_CHANNELS, 3, stride=2)
        self.blocks = nn.ModuleList()
        inputs = STEM_CHANNELS
        for stage in STAGES:
            for i in range(stage.repeats):
                self.blocks.append(Block(inputs, stage.channels, stage, stage.stride if i == 0 else 1))
                inputs = stage.channels
        self.head = nn.Conv2d(inputs, FEATURES, 1)
        self.classifier = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """The features (B, 1280) before dropout and classifier."""
        h: Tensor = F.relu6(self.stem(x))
        for block in self.blocks:
            h = block(h)
        return F.relu6(self.head(h)).mean(dim=(2, 3))


def layer_names() -> Iterator[tuple[str, str, str]]:
    """For each convolution: its name here, and the published names of the convolution and its batch norm."""
    yield "stem", "_conv_stem", "_bn0"
    for i in range(sum(stage.repeats for stage in STAGES)):
        theirs = f"_blocks.{i}"
        if i > 0:
            yield f"blocks.{i}.expand", f"{theirs}._expand_conv", f"{theirs}._bn0"
        yield f"blocks.{i}.depthwise", f"{theirs}._depthwise_conv", f"{theirs}._bn1"
        yield f"blocks.{i}.project", f"{theirs}._project_conv", f"{theirs}._bn2"
    yield "head", "_conv_head", "_bn1"


def folded(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of `EfficientNetLite0`, from the published one: W g / sqrt(v + eps), b - m g / sqrt(v + eps)."""
    state = {"classifier.weight": published["_fc.weight"], "classifier.bias": published["_fc.bias"]}
    for name, conv, norm in layer_names():
        mean, variance, gain, shift = (
            published[f"{norm}.{key}"].double() for key in ("running_mean", "running_var", "weight", "bias")
        )
        scale = gain / torch.sqrt(variance + BATCH_NORM_EPS)
        state[f"{name}.weight"] = (published[f"{conv}.weight"].double() * scale.view(-1, 1, 1, 1)).float()
        state[f"{name}.bias"] = (shift - mean * scale).float()
    return state
