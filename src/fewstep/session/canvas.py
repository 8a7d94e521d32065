"""What a picture starts from: an image, the part of it that is drawn anew, a sketch to follow."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.configs import Draw
from fewstep.diffusion.guidance import Denoiser
from fewstep.diffusion.schedule import NoiseLevel
from fewstep.engines import Engine
from fewstep.errors import UsageError, option
from fewstep.images import image_size, read_image, read_mask
from fewstep.models.inpainting import mask_and_latents


@dataclass(frozen=True)
class Canvas:
    """The size of the pictures, and what is on them before the first step. Tensors are for one picture."""

    height: int
    width: int
    pixels: Tensor | None = None  # (3, H, W) in [-1, 1]
    mask: Tensor | None = None  # (1, H, W) in [0, 1]: how far each pixel is drawn anew
    latents: Tensor | None = None  # (1, C, h, w) of the pixels, where they are begun from or kept
    start: Tensor | None = None  # the same, where the first step begins from them; None begins from noise alone
    mask_and_latents: Tensor | None = None  # (1, 1 + C, h, w), for an inpainting network
    control: Tensor | None = None  # (1, 3, H, W) in [0, 1], what a ControlNet follows
    outpaint: str | None = None  # LEFT,TOP,RIGHT,BOTTOM pixels that were added to the image

    @property
    def area(self) -> Tensor | None:
        """The latents (1, 1, h, w) that are drawn anew, as 1: those with any pixel that is."""
        if self.mask is None or self.latents is None:
            return None
        factor = self.height // self.latents.shape[2]
        return (F.max_pool2d(self.mask[None], factor) > 0).to(self.latents)

    def kept(self, pixels: Tensor) -> Tensor:
        """Drawn pixels (3, H, W) with the image's own wherever the mask is 0, to the bit."""
        if self.mask is None or self.pixels is None:
            return pixels
        mixed = self.mask * pixels + (1 - self.mask) * self.pixels
        return torch.where(self.mask == 0, self.pixels, mixed)


def canvas_of(draw: Draw, engine: Engine) -> Canvas:
    """The canvas that `draw` asks for."""
    height, width, pixels, mask = _image_and_mask(draw, engine)
    begins, keeps = strength_of(draw) < 1, mask is not None and not engine.facts.inpaints
    latents = engine.encode(pixels[None]) if pixels is not None and (begins or keeps) else None
    control = None
    if draw.control_image is not None:
        control = (read_image(draw.control_image, width, height)[None].to(engine.device) + 1) / 2
        control = 1 - control if draw.sketch else control
    for_inpainting = _mask_and_latents(engine, height, width, pixels, mask) if engine.facts.inpaints else None
    start = latents if begins else None
    added = draw.outpaint and _added(draw, height, width)
    return Canvas(height, width, pixels, mask, latents, start, for_inpainting, control, added)


def strength_of(draw: Draw) -> float:
    """How far from --image to go: as asked, else all the way where there is no image or a part of it is new."""
    if draw.image is None:
        return 1.0
    return draw.strength or (1.0 if draw.mask or draw.outpaint else 0.6)


def _image_and_mask(draw: Draw, engine: Engine) -> tuple[int, int, Tensor | None, Tensor | None]:
    """Height, width, and what --image, --mask and --outpaint make."""
    if draw.image is None:
        return *_size(draw, engine), None, None
    if draw.outpaint is not None:
        return _extended(draw, engine)
    height, width = _size(draw, engine)
    mask = None if draw.mask is None else read_mask(draw.mask, width, height)
    return height, width, read_image(draw.image, width, height), mask


def _size(draw: Draw, engine: Engine) -> tuple[int, int]:
    """Height and width in pixels, checked against the autoencoder's factor."""
    factor = engine.facts.factor
    for field, value in (("width", draw.width), ("height", draw.height)):
        if value is not None and value % factor:
            fitting = max(round(value / factor), 1) * factor
            raise UsageError(f"{option(field)} {value} is not a multiple of {factor}", f"use {fitting}")
    return draw.height or engine.facts.height, draw.width or engine.facts.width


def _extended(draw: Draw, engine: Engine) -> tuple[int, int, Tensor, Tensor]:
    """The image on a canvas larger by --outpaint, its edge drawn out; the mask is 1 beyond the image.

    The canvas grows at the right and the bottom up to a multiple of the autoencoder's factor.
    """
    assert draw.image is not None
    width, height = _own_size(draw, draw.image)
    left, top, right, bottom = sides(draw.outpaint or "")
    right += -(left + width + right) % engine.facts.factor
    bottom += -(top + height + bottom) % engine.facts.factor
    around = (left, right, top, bottom)
    pixels = F.pad(read_image(draw.image, width, height)[None], around, mode="replicate")[0]
    mask = F.pad(torch.zeros(1, height, width), around, value=1.0)
    return pixels.shape[1], pixels.shape[2], pixels, mask


def _own_size(draw: Draw, image: bytes) -> tuple[int, int]:
    """Width and height of the image itself, before pixels are added to it."""
    own_width, own_height = image_size(image)
    return draw.width or own_width, draw.height or own_height


def _added(draw: Draw, height: int, width: int) -> str:
    """--outpaint as it came out on a canvas of this size: with what was added up to a multiple of the factor."""
    assert draw.image is not None
    own_width, own_height = _own_size(draw, draw.image)
    left, top, _, _ = sides(draw.outpaint or "")
    return f"{left},{top},{width - left - own_width},{height - top - own_height}"


def sides(text: str) -> tuple[int, int, int, int]:
    """Pixels at the left, top, right and bottom that --outpaint asks for: one number for all, or four."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 4) or min(numbers) < 0 or not any(numbers):
        raise UsageError(
            f"{option('outpaint')} {text} is not pixels at the left, top, right and bottom", "such as 64, or 0,0,128,0"
        )
    left, top, right, bottom = numbers * (4 // len(numbers))
    return left, top, right, bottom


def _mask_and_latents(engine: Engine, height: int, width: int, pixels: Tensor | None, mask: Tensor | None) -> Tensor:
    """What an inpainting network gets beside x. Without an image, or without a mask, all is drawn anew."""
    mask = torch.ones(1, height, width) if mask is None else mask
    pixels = torch.zeros(3, height, width) if pixels is None else pixels
    return mask_and_latents(engine, pixels[None], mask[None])


@dataclass(frozen=True)
class Keeping:
    """A denoiser whose estimate of x_0 is the image itself wherever nothing is drawn: inpainting without training.

    Every solver then leads there to the image, and on the way to it with the picture's own noise.
    """

    denoise: Denoiser
    latents: Tensor  # (1, C, H, W) of the image
    area: Tensor  # (1, 1, H, W), 1 where the network's estimate counts

    def __call__(self, x_t: Tensor, level: NoiseLevel) -> Tensor:
        """x_t (B, C, H, W) -> x_0 estimate of the same shape."""
        return torch.lerp(self.latents, self.denoise(x_t, level), self.area)
