"""PSNR in closed form; the foreground is what is drawn, and two pixels round it."""

import math

import pytest
import torch

from fewstep.metrics.psnr import foreground, foreground_psnr, psnr


def white(size: int = 16) -> torch.Tensor:
    return torch.ones(1, 3, size, size)


def dot(size: int = 16) -> torch.Tensor:
    """One black pixel at (8, 8) on white."""
    x = white(size)
    x[..., 8, 8] = -1
    return x


def grey(level: int) -> float:
    """The pixel in [-1, 1] of an 8-bit level."""
    return level / 127.5 - 1


@pytest.mark.parametrize(("error", "decibels"), [(2.0, 0.0), (0.2, 20.0), (0.02, 40.0)])
def test_psnr_of_a_constant_error(error, decibels):
    x = torch.full((2, 3, 5, 7), -1.0)
    assert psnr(x, x + error).tolist() == pytest.approx([decibels] * 2, abs=1e-4)


def test_psnr_equals_that_of_8_bit_images():
    a, b = torch.randint(0, 256, (2, 4, 3, 9, 11), generator=torch.Generator().manual_seed(0)).double()
    expected = 10 * torch.log10(255**2 / ((a - b) ** 2).mean(dim=(1, 2, 3)))
    torch.testing.assert_close(psnr(a / 127.5 - 1, b / 127.5 - 1), expected)


def test_equal_images_are_at_infinity():
    assert psnr(dot(), dot()).item() == math.inf
    assert foreground_psnr(dot(), dot()).item() == math.inf


def test_foreground_is_the_drawing_and_two_pixels_round_it():
    expected = torch.zeros(1, 16, 16, dtype=torch.bool)
    expected[:, 6:11, 6:11] = True
    assert torch.equal(foreground(dot()), expected)


@pytest.mark.parametrize(("level", "drawn"), [(248, False), (247, False), (246, True)])
@pytest.mark.parametrize("channel", [0, 1, 2])
def test_background_is_within_8_levels_of_white_in_every_channel(level, drawn, channel):
    x = white()
    x[:, channel, 8, 8] = grey(level)
    assert foreground(x).any() == drawn


def test_foreground_psnr_does_not_credit_the_ground():
    y = dot()
    y[..., 8, 8] = 1  # the drawing is lost: 25 pixels count, one is wrong by 2
    assert foreground_psnr(dot(), y).item() == pytest.approx(10 * math.log10(25), abs=1e-4)
    assert psnr(dot(), y).item() == pytest.approx(10 * math.log10(256), abs=1e-4)


def test_foreground_psnr_ignores_what_is_painted_outside():
    y = dot()
    y[..., 0, 0] = -1
    assert foreground_psnr(dot(), y).item() == math.inf


def test_foreground_psnr_is_per_image_and_nan_on_all_white():
    x = torch.cat([dot(), white(), -white()])
    result = foreground_psnr(x, x - 0.2)
    assert result.shape == (3,)
    assert result[1].isnan()
    assert result[[0, 2]].tolist() == pytest.approx([20.0, 20.0], abs=1e-4)


def test_psnr_of_bf16_images_is_computed_in_float32():
    x = torch.linspace(-1, 1, 48).view(1, 3, 4, 4).bfloat16()
    assert psnr(x, x + 0.5).dtype == torch.float32
