"""Peak signal-to-noise ratio, over whole images or only over a drawing on white."""

import torch
import torch.nn.functional as F
from torch import Tensor

PEAK = 2.0  # range of pixels, from -1 to 1
WHITE_LEVELS = 8  # levels of 255; a reference pixel this close to white in every channel is background
MARGIN = 2  # pixels of background around the drawing that count too, so that edges are judged


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """10 log10(peak^2 / MSE) in dB, (B,), inf for equal images. x, y: (B, 3, H, W) pixels in [-1, 1]."""
    return decibel(squared_error(x, y).mean(dim=(1, 2)))


def foreground_psnr(x: Tensor, y: Tensor) -> Tensor:
    """The PSNR in dB, (B,), over only the `foreground` of the reference x. x, y: (B, 3, H, W) in [-1, 1].

    A white ground is easy to get right and hides errors in a small drawing. NaN if x is all white. Pixels of y outside
    the foreground do not count.
    """
    mask = foreground(x)
    return decibel((squared_error(x, y) * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2)))


def foreground(x: Tensor) -> Tensor:
    """The pixels of the drawing in x, (B, H, W) bool: more than 8 of 255 levels from white in a channel, or near one.

    x: (B, 3, H, W) pixels in [-1, 1]. Near means at most 2 pixels away along each axis: dilation by a 5x5 square.
    """
    levels = ((1 - x.float()) * 127.5).abs().round()
    figure = (levels > WHITE_LEVELS).any(dim=1, keepdim=True).float()
    return F.max_pool2d(figure, 2 * MARGIN + 1, stride=1, padding=MARGIN).squeeze(1).bool()


def squared_error(x: Tensor, y: Tensor) -> Tensor:
    """The mean over the channels of (x - y)^2, (B, H, W), in float32 or better."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (x.to(dtype) - y.to(dtype)).square().mean(dim=1)


def decibel(mse: Tensor) -> Tensor:
    """10 log10(peak^2 / mse), (B,)."""
    return 10 * torch.log10(PEAK**2 / mse)
