"""Train the embedded model's autoencoder (AutoencoderKL, 128 px -> 4x16x16) on the base drawings.

    python -m recipes.emoji.autoencoder --out ~/.cache/fewstep/emoji/autoencoder [--resume]

The loss is mean absolute error + LPIPS (AlexNet) + a little KL, on random crops. The export has the scaling factor that
was measured on the drawings' latents. The loop, checkpoints and resume are those of all training.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from accelerate import PartialState
from diffusers import AutoencoderKL
from pydantic import Field
from torch import Tensor, nn

from fewstep.assets import shipped_kit
from fewstep.cli import main_of
from fewstep.configs import TrainingConfig
from fewstep.events import counted
from fewstep.images import to_image
from fewstep.io import atomic_path, cache_dir, read_json, write_json
from fewstep.metrics.agreement import Pictures
from fewstep.metrics.frechet import frechet_distance, statistics
from fewstep.metrics.lpips import LPIPS, load_lpips
from fewstep.metrics.networks import Inception, load_efficientnet, load_inception
from fewstep.metrics.psnr import foreground_psnr, psnr
from fewstep.metrics.reference import agreement_with, load_reference
from fewstep.models.load import pick_device
from fewstep.training.draws import SampleId, generator, integers, normal
from fewstep.training.loop import loop
from fewstep.training.players import Player, Trainable, average_of
from recipes.emoji.built import read_metadata, read_pixels, to_signed


class AutoencoderConfig(TrainingConfig):
    """Train the embedded model's autoencoder on the emoji image folder."""

    out: Path = cache_dir() / "emoji" / "autoencoder"
    """The run's folder. The diffusers AutoencoderKL is written to its `vae` folder."""
    images: Path = cache_dir() / "emoji" / "images"
    """The folder that dataset.py built."""
    train_steps: int = 8000
    """Optimiser steps."""
    batch_size: int = 16
    """Crops per step."""
    learning_rate: float = 1e-3
    """The peak rate of AdamW."""
    decay: Literal["constant", "cosine"] = "cosine"
    """The course of the rate after the warm-up."""
    warmup: int = 200
    """Steps of linear warm-up."""
    ema: float = 0.998
    """Decay of the average that is exported."""
    crop: Annotated[int, Field(ge=32, le=128, multiple_of=8)] = 64
    """Side of the random crops, in pixels."""
    channels: tuple[int, ...] = (16, 32, 64, 128)
    """Channels at 128, 64, 32 and 16 px."""
    lpips_weight: float = 0.5
    """Weight of LPIPS; the mean absolute error has weight 1."""
    kl_weight: float = 3e-4
    """Weight of the mean KL divergence per latent value."""
    decoder_of: Path | None = None
    """Train only the decoder of this autoencoder further; its latents do not change."""


class Crops(NamedTuple):
    """A batch of crops and the noise of their posterior draws."""

    pixels: Tensor  # (B, 3, crop, crop) in [-1, 1]
    eps: Tensor  # (B, 4, crop / 8, crop / 8)


class Drawings:
    """All drawings of some splits in memory, cropped at random per visit."""

    def __init__(self, folder: Path, splits: Sequence[str], crop: int = 128) -> None:
        self.rows = read_metadata(folder, splits)
        self.pixels = torch.stack([read_pixels(folder / row["file_name"]) for row in self.rows])
        self.crop = crop

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, visits: Sequence[SampleId], device: torch.device) -> Crops:
        generators = [generator(visit) for visit in visits]
        room = self.pixels.shape[-1] - self.crop + 1
        tops, lefts = integers(generators, room), integers(generators, room)
        crops = [
            self.pixels[v.index, :, y : y + self.crop, x : x + self.crop]
            for v, y, x in zip(visits, tops, lefts, strict=True)
        ]
        eps = normal(generators, (4, self.crop // 8, self.crop // 8))
        return Crops(to_signed(torch.stack(crops)).to(device), eps.to(device))


def new_autoencoder(channels: Sequence[int]) -> AutoencoderKL:
    """An untrained AutoencoderKL with Stable Diffusion's shape: factor 8, 4 latent channels, no attention."""
    levels = len(channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(channels),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=128,
        mid_block_add_attention=False,
    )


class Autoencoding(nn.Module):
    """Maps pixels and eps to reconstruction, posterior mean and log variance."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        posterior = self.vae.encode(pixels).latent_dist
        return self.vae.decode(posterior.mean + posterior.std * eps).sample, posterior.mean, posterior.logvar


def autoencoder_loss(module: nn.Module, crops: Crops, lpips: LPIPS, config: AutoencoderConfig) -> Tensor:
    """Mean absolute error + LPIPS + mean KL to a standard normal, weighted."""
    pixels, mean, logvar = module(crops.pixels, crops.eps)
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    loss: Tensor = (
        (pixels - crops.pixels).abs().mean()
        + config.lpips_weight * lpips(crops.pixels, pixels).mean()
        + config.kl_weight * kl
    )
    return loss


@torch.no_grad()
def export(vae: AutoencoderKL, average: dict[str, Tensor], drawings: Drawings, lpips: LPIPS, out: Path) -> None:
    """Save the averaged weights in diffusers' layout, with the measured scaling factor and quality figures."""
    trained = {name: value.clone() for name, value in vae.named_parameters()}
    vae.load_state_dict(average, strict=False)
    device = vae.device
    index = torch.linspace(0, len(drawings) - 1, 256).long()
    pixels = to_signed(drawings.pixels[index]).to(device)
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in torch.split(pixels, 32)])
    decoded = torch.cat([vae.decode(part).sample.clamp(-1, 1) for part in torch.split(latents, 32)])
    if "encoder.conv_in.weight" in average:  # trained, so the latents are new
        vae.register_to_config(scaling_factor=round(float(1 / latents.std()), 5))
    figures = {
        "foreground_psnr_db": float(foreground_psnr(pixels, decoded).nanmean()),
        "psnr_db": float(psnr(pixels, decoded).clamp(max=60).mean()),
        "lpips": float(
            torch.cat(
                [lpips(a, b) for a, b in zip(torch.split(pixels, 32), torch.split(decoded, 32), strict=True)]
            ).mean()
        ),
        "latent_std": float(latents.std()),
        "drawings": len(index),
    }
    vae.save_pretrained(out / "vae")
    write_json(out / "figures.json", figures)
    sheet(pixels, decoded, out / "reconstructions.png")
    vae.load_state_dict(trained, strict=False)
    print(json.dumps(figures), file=sys.stderr)


@torch.no_grad()
def add_features(drawings: Drawings, out: Path, device: torch.device) -> None:
    """Add two measures of the loss on all held-out drawings to OUT/figures.json.

    rfid: FID between drawings and reconstructions. There are fewer drawings than its 2,048 features, so compare it only
    with values for equally many. agreement: the share of reconstructions whose nearest drawing of another style, in the
    kit that ships, shows the same thing. agreement_drawings: that share for the drawings themselves.
    """
    vae = AutoencoderKL.from_pretrained(out / "vae", local_files_only=True).to(device).eval()
    inception, efficientnet, parts = load_inception(device), load_efficientnet(device), []
    batches = torch.split(drawings.pixels, 16)
    for pixels in counted(batches, "taking features", "drawing", len(drawings.pixels), len):
        signed = to_signed(pixels).to(device)
        decoded = vae.decode(vae.encode(signed).latent_dist.mean).sample.clamp(-1, 1)
        parts.append([network(images) for network in (inception, efficientnet) for images in (signed, decoded)])
    features = [torch.cat(part) for part in zip(*parts, strict=True)]
    real, made = (statistics([part], Inception.label) for part in features[:2])
    reference = load_reference(shipped_kit() / "reference.safetensors")
    labels = [row["style"] for row in drawings.rows], [row["concept"] for row in drawings.rows]
    known, kept = (agreement_with(Pictures(part.cpu(), *labels), reference).score for part in features[2:])
    figures = {
        "rfid": frechet_distance(real, made, allow_few=True),
        "agreement": kept,
        "agreement_drawings": known,
        "rfid_drawings": len(drawings),
    }
    write_json(out / "figures.json", read_json(out / "figures.json", "figures") | figures)
    print(json.dumps(figures), file=sys.stderr)


def sheet(pixels: Tensor, decoded: Tensor, path: Path, columns: int = 16) -> None:
    """Drawings (odd rows) over their reconstructions (even rows), as one PNG."""
    rows = []
    for start in range(0, 4 * columns, columns):
        for images in (pixels, decoded):
            rows.append(torch.cat(list(images[start * 4 :: 4][:columns]), dim=2))
    with atomic_path(path) as temporary:
        to_image(torch.cat(rows, dim=1).cpu()).save(temporary, "PNG")


def run(config: AutoencoderConfig) -> None:
    """Train, exporting at every checkpoint."""
    torch.manual_seed(config.seed)
    vae = new_autoencoder(config.channels)
    parameters = dict(vae.named_parameters())
    if config.decoder_of is not None:
        vae = AutoencoderKL.from_pretrained(config.decoder_of, local_files_only=True)
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
        parameters = {name: p for name, p in vae.named_parameters() if p.requires_grad}
    trainable = Trainable(Autoencoding(vae), parameters, {"export": average_of(parameters, config.ema)})
    drawings = Drawings(config.images, ["base"], config.crop)
    held_out = Drawings(config.images, ["held-out"])
    lpips = load_lpips("cuda" if torch.cuda.is_available() and config.device != "cpu" else "cpu")
    loop(
        {"autoencoder": Player(trainable, lambda module, crops, step: autoencoder_loss(module, crops, lpips, config))},
        drawings,
        config,
        lambda step: export(vae, trainable.averages["export"].shadow, held_out, lpips, config.out),
    )
    if PartialState().is_main_process:
        add_features(held_out, config.out, pick_device(config.device))


if __name__ == "__main__":
    sys.exit(main_of(AutoencoderConfig, run))
