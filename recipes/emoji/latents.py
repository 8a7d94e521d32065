"""The base drawings as latents: encoded once, packed with what their captions are made of into one small file."""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from built import read_metadata, read_pixels, to_signed
from diffusers import AutoencoderKL
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from fewstep.errors import FewstepError
from fewstep.io import atomic_path, sha256_bytes, sha256_file
from fewstep.models.model import encoder_sha256

FORMAT = "1"  # raise when the content of a packed file changes
BATCH = 32
KEPT = ("style", "label", "tags")  # of a row of metadata.jsonl


class Packed(NamedTuple):
    """A data set in memory."""

    latents: Tensor  # (N, 4, H, W) float16, scaled; means of the posterior
    rows: list[dict[str, Any]]  # style, label and tags of each


def packed_latents(images: Path, vae_folder: Path, file: Path | None, cache: Path, device: torch.device) -> Packed:
    """The base drawings of `images` as latents of the autoencoder in `vae_folder`.

    file: a packed file to use as it is; None means the one in `cache` named by the hash of what decides its
    content, made now if it is not there. Raises FewstepError for a file of another autoencoder.
    """
    if file is None:
        key = sha256_bytes(
            FORMAT.encode(), encoder_sha256(load_autoencoder(vae_folder)).encode(), images_sha256(images).encode()
        )
        file = cache / f"latents-{key[:12]}.safetensors"
        if not file.exists():
            pack(images, vae_folder, file, device)
    return read_packed(file, vae_folder)


def load_autoencoder(folder: Path) -> AutoencoderKL:
    """The autoencoder in a folder."""
    if not (folder / "config.json").exists():
        raise FewstepError(
            f"no autoencoder in {folder}", "run recipes/emoji/autoencoder.py first, or name it with --vae"
        )
    return AutoencoderKL.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()


def images_sha256(folder: Path) -> str:
    """Hash of what the image folder is made from: its recipe (packages, size) and its list of drawings."""
    files = [folder / "dataset.json", folder / "metadata.jsonl"]
    if not all(file.exists() for file in files):
        raise FewstepError(
            f"no emoji images in {folder}", "run recipes/emoji/dataset.py first, or name it with --images"
        )
    return sha256_bytes(*(sha256_file(file).encode() for file in files))


@torch.no_grad()
def pack(images: Path, vae_folder: Path, file: Path, device: torch.device) -> None:
    """Encode the base drawings and write them to `file`, whole or not at all."""
    vae = load_autoencoder(vae_folder).to(device)
    rows = read_metadata(images, ["base"])
    latents = []
    for start in tqdm(range(0, len(rows), BATCH), unit=f"x{BATCH} images", desc="encoding", file=sys.stderr):
        drawings = [read_pixels(images / row["file_name"]) for row in rows[start : start + BATCH]]
        pixels = to_signed(torch.stack(drawings)).to(device)
        latents.append((vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor).half().cpu())
    text = json.dumps([{key: row[key] for key in KEPT} for row in rows], ensure_ascii=False).encode()
    tensors = {"latents": torch.cat(latents).contiguous(), "rows": torch.frombuffer(bytearray(text), dtype=torch.uint8)}
    with atomic_path(file) as temporary:
        save_file(
            tensors,
            temporary,
            {"format": FORMAT, "vae": encoder_sha256(load_autoencoder(vae_folder)), "images": images_sha256(images)},
        )


def read_packed(file: Path, vae_folder: Path) -> Packed:
    """The content of a packed file, checked to be latents of this autoencoder."""
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            latents, text = opened.get_tensor("latents"), opened.get_tensor("rows")
    except (OSError, SafetensorError) as error:
        raise FewstepError(f"no packed latents in {file} ({error})", "leave --latents out to make them") from error
    if metadata.get("vae") != encoder_sha256(load_autoencoder(vae_folder)):
        raise FewstepError(
            f"the latents in {file} were made with another autoencoder than {vae_folder}",
            "name the right one with --vae, or leave --latents out to encode anew",
        )
    return Packed(latents, json.loads(text.numpy().tobytes()))
