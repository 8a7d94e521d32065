"""Classifier-free guidance in one batched call, and the count of network evaluations (NFE)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fewstep.diffusion.prediction import Prediction
from fewstep.diffusion.schedule import NoiseLevel


class Conditioning(NamedTuple):
    """The network's inputs besides x and t. A part is None when this kind of network does not take it."""

    text: Tensor  # (B, L, D) text embeddings
    pooled: Tensor | None = None  # (B, P) one embedding of the whole text (SDXL)
    sizes: Tensor | None = None  # (B, 6) original height, width; crop's top, left; target height, width (SDXL)
    mask_and_latents: Tensor | None = None  # (B, 1 + C, H, W) mask and latents of the kept part (inpainting UNets)
    control: Tensor | None = None  # (B, 3, 8 H, 8 W) in [0, 1], the picture that a ControlNet follows
    negative: Tensor | None = None  # (B, L, D) the negative text that NAG steers attention away from
    w: Tensor | None = None  # (B,) guidance_scale - 1, of networks that take guidance as an input (LCM)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        """This conditioning with `change` applied to every part that is not None."""
        return Conditioning(*(None if part is None else change(part) for part in self))  # type: ignore[arg-type]

    def expand(self, batch: int) -> "Conditioning":
        """This conditioning (batch size 1) repeated for `batch` images."""
        return self.map(lambda part: part.expand(batch, *part.shape[1:]))

    def to(self, device: torch.device | str) -> "Conditioning":
        """This conditioning on the device."""
        return self.map(lambda part: part.to(device))

    def __getitem__(self, index: slice) -> "Conditioning":  # type: ignore[override]
        return self.map(lambda part: part[index])

    def where(self, mask: Tensor, other: "Conditioning") -> "Conditioning":
        """Rows of this conditioning where mask (B,) is true, rows of the other elsewhere."""
        pairs = zip(self, other, strict=True)
        return Conditioning(
            *(None if a is None or b is None else torch.where(mask.view(-1, *(1,) * (a.dim() - 1)), a, b)
              for a, b in pairs)  # type: ignore[arg-type]
        )  # fmt: skip


def concatenate(parts: Sequence[Conditioning]) -> Conditioning:
    """One conditioning: these, joined along the batch."""
    return Conditioning(
        *(None if pieces[0] is None else torch.cat(pieces) for pieces in zip(*parts, strict=True))  # type: ignore[arg-type]
    )


def with_guidance(conditioning: Conditioning, guidance_scale: float | Tensor) -> Conditioning:
    """The conditioning for networks that take guidance as an input: w = guidance_scale - 1 (LCM, section 4.2).

    guidance_scale: one for all rows, or (B,).
    """
    rows = len(conditioning.text)
    scales = torch.as_tensor(guidance_scale, dtype=torch.float32, device=conditioning.text.device)
    return conditioning._replace(w=scales.expand(rows) - 1)


def guidance_embedding(w: Tensor, width: int) -> Tensor:
    """Sines and cosines of 1000 w (B,) at `width` / 2 frequencies from 1 down to 1e-4: (B, width) float32.

    Source: LCM (arXiv 2310.04378, section 4.2), in the form of its published code. An odd width ends in zeros.
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(torch.tensor(10_000.0).log() / (half - 1)))
    angles = (w.float() * 1000)[:, None] * frequencies.to(w.device)[None]
    return nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))


class Network(Protocol):
    """The bare network: x (B, C, H, W), t (B,), conditioning -> output (B, C, H, W)."""

    def __call__(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor: ...


class Denoiser(Protocol):
    """Estimates x_0 from x_t (B, C, H, W) at a noise level."""

    def __call__(self, x_t: Tensor, level: NoiseLevel) -> Tensor: ...


@dataclass
class Evaluations:
    """The count of network rows evaluated so far. Divided by the number of images, it is NFE (trap 11)."""

    rows: int = 0


@dataclass(frozen=True)
class GuidedDenoiser:
    """x_0 = x_0(empty) + guidance_scale * (x_0(c) - x_0(empty)) (arXiv 2207.12598, eq. 6).

    Guiding x_0 is the same as guiding the network's output (eps, v or x_0), because each conversion is affine
    with the same x_t. A solver of more than one stage then steps along the guided ODE. Algorithm 1's
    (1 + w) Psi(c) - w Psi(empty) agrees with that to first order, and exactly for DDIM (trap 8).

    guidance_scale: 1 = off, one network row an image. Otherwise both branches run in one batch, two rows an image.
    A tensor (B,) sets the scale per image; then both branches always run.
    """

    network: Network
    prediction: Prediction
    conditioning: Conditioning
    empty: Conditioning | None = None
    guidance_scale: float | Tensor = 1.0
    evaluations: Evaluations = field(default_factory=Evaluations)

    def __call__(self, x_t: Tensor, level: NoiseLevel) -> Tensor:
        """The guided estimate of x_0, of the shape of x_t (B, C, H, W)."""
        t = level.t.expand(len(x_t))
        if not isinstance(self.guidance_scale, Tensor) and self.guidance_scale == 1:
            self.evaluations.rows += len(x_t)
            return self.prediction.to_x_0(self.network(x_t, t, self.conditioning), x_t, level)
        if self.empty is None:
            raise ValueError("guidance needs the empty conditioning")
        both = concatenate([self.conditioning, self.empty])
        self.evaluations.rows += 2 * len(x_t)
        output, output_empty = self.network(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
        scale = self.guidance_scale
        if isinstance(scale, Tensor):
            scale = scale.view(-1, 1, 1, 1)
        return self.prediction.to_x_0(output_empty + scale * (output - output_empty), x_t, level)
