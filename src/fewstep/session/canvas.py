"""The canvas of a picture: an image to start from, the part of it to draw again, a picture for a ControlNet."""

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
    """The size of the pictures, and their content before the first step. Tensors are for one picture."""

    height: int
    width: int
    pixels: Tensor | None = None  # (3, H, W) in [-1, 1]
    mask: Tensor | None = None  # (1, H, W) in [0, 1]: 1 where pixels are drawn again, 0 where they are kept
    latents: Tensor | None = None  # (1, C, h, w) of the pixels, if drawing starts from them or keeps a part
    start: Tensor | None = None  # the latents, if the first step begins from them; None = it begins from noise alone
    mask_and_latents: Tensor | None = None  # (1, 1 + C, h, w), for an inpainting network
    control: Tensor | None = None  # (1, 3, H, W) in [0, 1], for a ControlNet
    outpaint: str | None = None  # LEFT,TOP,RIGHT,BOTTOM pixels that were added to the image

    @property
    def area(self) -> Tensor | None:
        """(1, 1, h, w), 1 for latents that are drawn again: those with at least one such pixel."""
        if self.mask is None or self.latents is None:
            return None
        factor = self.height // self.latents.shape[2]
        return (F.max_pool2d(self.mask[None], factor) > 0).to(self.latents)

    def kept(self, pixels: Tensor) -> Tensor:
        """The new pixels (3, H, W); where the mask is 0, exactly the image's pixels."""
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
    """The strength of `draw`. Unless it is set, it is 1 without an image and when a part of the image is new."""
    if draw.image is None:
        return 1.0
    return draw.strength or (1.0 if draw.mask or draw.outpaint else 0.6)


def _image_and_mask(draw: Draw, engine: Engine) -> tuple[int, int, Tensor | None, Tensor | None]:
    """Height, width, image and mask from --image, --mask and --outpaint."""
    if draw.image is None:
        return *_size(draw, engine), None, None
    if draw.outpaint is not None:
        return _extended(draw, engine)
    height, width = _size(draw, engine)
    mask = None if draw.mask is None else read_mask(draw.mask, width, height)
    return height, width, read_image(draw.image, width, height), mask


def _size(draw: Draw, engine: Engine) -> tuple[int, int]:
    """Height and width in pixels, checked against the model's multiple: the autoencoder's factor for most."""
    factor = multiple_of(engine)
    for field, value in (("width", draw.width), ("height", draw.height)):
        if value is not None and value % factor:
            fitting = max(round(value / factor), 1) * factor
            raise UsageError(f"{option(field)} {value} is not a multiple of {factor}", f"use {fitting}")
    return draw.height or engine.facts.height, draw.width or engine.facts.width


def multiple_of(engine: Engine) -> int:
    """The sides of the engine's pictures, in pixels, are multiples of this."""
    return engine.facts.multiple or engine.facts.factor


def _extended(draw: Draw, engine: Engine) -> tuple[int, int, Tensor, Tensor]:
    """The image on a canvas enlarged by --outpaint, with its edge pixels repeated. The mask is 1 outside the image.

    The canvas also grows on the right and at the bottom to a multiple of the autoencoder's factor.
    """
    assert draw.image is not None
    width, height = _own_size(draw, draw.image)
    left, top, right, bottom = sides(draw.outpaint or "")
    right += -(left + width + right) % multiple_of(engine)
    bottom += -(top + height + bottom) % multiple_of(engine)
    around = (left, right, top, bottom)
    pixels = F.pad(read_image(draw.image, width, height)[None], around, mode="replicate")[0]
    mask = F.pad(torch.zeros(1, height, width), around, value=1.0)
    return pixels.shape[1], pixels.shape[2], pixels, mask


def _own_size(draw: Draw, image: bytes) -> tuple[int, int]:
    """Width and height of the image itself, without added pixels."""
    own_width, own_height = image_size(image)
    return draw.width or own_width, draw.height or own_height


def _added(draw: Draw, height: int, width: int) -> str:
    """--outpaint for a canvas of this size, including the pixels that make its sides multiples of the factor."""
    assert draw.image is not None
    own_width, own_height = _own_size(draw, draw.image)
    left, top, _, _ = sides(draw.outpaint or "")
    return f"{left},{top},{width - left - own_width},{height - top - own_height}"


def sides(text: str) -> tuple[int, int, int, int]:
    """Pixels on the left, top, right and bottom, from the text of --outpaint: one number for all, or four."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 4) or min(numbers) < 0 or not any(numbers):
        raise UsageError(
            f"{option('outpaint')} {text} is not pixels for left, top, right and bottom", "such as 64, or 0,0,128,0"
        )
    left, top, right, bottom = numbers * (4 // len(numbers))
    return left, top, right, bottom


def _mask_and_latents(engine: Engine, height: int, width: int, pixels: Tensor | None, mask: Tensor | None) -> Tensor:
    """The mask and latents for an inpainting network. Without an image or a mask, everything is drawn."""
    mask = torch.ones(1, height, width) if mask is None else mask
    pixels = torch.zeros(3, height, width) if pixels is None else pixels
    return mask_and_latents(engine, pixels[None], mask[None])


@dataclass(frozen=True)
class Keeping:
    """A denoiser for inpainting without training. In the kept part, its estimate of x_0 is the image itself.

    Every solver then ends at the image there. On the way, the kept part has the picture's own noise.
    """

    denoise: Denoiser
    latents: Tensor  # (1, C, H, W) of the image
    area: Tensor  # (1, 1, H, W), 1 where the network's estimate counts

    def __call__(self, x_t: Tensor, level: NoiseLevel) -> Tensor:
        """The estimate of x_0, of the shape of x_t (B, C, H, W)."""
        return torch.lerp(self.latents, self.denoise(x_t, level), self.area)
