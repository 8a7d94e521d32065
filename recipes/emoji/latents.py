"""The base drawings as latents, most of them also in other colours, encoded once and packed into one small file."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.events import counted
from fewstep.io import atomic_path, sha256_bytes, sha256_file
from fewstep.models.model import encoder_sha256
from recipes.emoji.built import read_metadata, read_pixels, to_signed
from recipes.emoji.colours import main_colour, may_change, name_of, other_colours, recoloured

FORMAT = "2"  # raise when the content of a packed file changes
BATCH = 32
KEPT = ("style", "label", "tags", "group")  # the kept fields of a row of metadata.jsonl
COLOURS_EACH = 2  # number of other colours for a drawing


class Packed(NamedTuple):
    """A data set in memory."""

    latents: Tensor  # (N, 4, H, W) float16, scaled; means of the posterior
    rows: list[dict[str, Any]]  # of each: KEPT; the name of its colour, if any; and recoloured, {colour: number}
    recoloured: Tensor  # (M, 4, H, W) likewise, by number: drawings of these in other colours


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
            f"no autoencoder in {folder}", "run python -m recipes.emoji.autoencoder first, or name it with --vae"
        )
    return AutoencoderKL.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()


def images_sha256(folder: Path) -> str:
    """Hash of what the image folder is made from: its recipe (packages, size) and its list of drawings."""
    files = [folder / "dataset.json", folder / "metadata.jsonl"]
    if not all(file.exists() for file in files):
        raise FewstepError(
            f"no emoji images in {folder}", "run python -m recipes.emoji.dataset first, or name it with --images"
        )
    return sha256_bytes(*(sha256_file(file).encode() for file in files))


def pack(images: Path, vae_folder: Path, file: Path, device: torch.device) -> None:
    """Encode the base drawings, and those in other colours, and write them to `file`, whole or not at all."""
    vae = load_autoencoder(vae_folder).to(device)
    rows, latents, changed, count = [], [], [], 0
    read = read_metadata(images, ["base"])
    batches = [read[start : start + BATCH] for start in range(0, len(read), BATCH)]
    for batch in counted(batches, "encoding", "image", len(read), len):
        drawings = [read_pixels(images / row["file_name"]) for row in batch]
        others: list[Tensor] = []
        for row, drawing in zip(batch, drawings, strict=True):
            colour, found = in_colours(row, drawing)
            numbers = range(count + len(others), count + len(others) + len(found))
            others += found.values()
            kept = {key: row[key] for key in KEPT}
            rows.append(kept | {"colour": colour, "recoloured": dict(zip(found, numbers, strict=True))})
        count += len(others)
        latents.append(encoded(vae, drawings))
        changed += [encoded(vae, others[i : i + BATCH]) for i in range(0, len(others), BATCH)]
    text = json.dumps(rows, ensure_ascii=False).encode()
    tensors = {
        "latents": torch.cat(latents).contiguous(),
        "recoloured": torch.cat([latents[0][:0], *changed]).contiguous(),
        "rows": torch.frombuffer(bytearray(text), dtype=torch.uint8),
    }
    metadata = {"format": FORMAT, "vae": encoder_sha256(load_autoencoder(vae_folder)), "images": images_sha256(images)}
    with atomic_path(file) as temporary:
        save_file(tensors, temporary, metadata)


def in_colours(row: dict[str, Any], drawing: Tensor) -> tuple[str | None, dict[str, Tensor]]:
    """The name of a drawing's colour, and it (3, H, W) uint8 in others; nothing where its colours are its sense."""
    if not may_change(row):
        return None, {}
    rgb = drawing.permute(1, 2, 0).numpy()
    main = main_colour(rgb)
    colours = other_colours(main, COLOURS_EACH, random.Random(row["file_name"]))
    changed = {colour: torch.from_numpy(recoloured(rgb, main, colour)).permute(2, 0, 1) for colour in colours}
    return name_of(main), changed


@torch.no_grad()
def encoded(vae: AutoencoderKL, drawings: Sequence[Tensor]) -> Tensor:
    """Latents (B, 4, h, w) float16, scaled, on the CPU, of drawings (3, H, W) uint8."""
    pixels = to_signed(torch.stack(list(drawings))).to(vae.device)
    scaled: Tensor = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
    return scaled.half().cpu()


def read_packed(file: Path, vae_folder: Path) -> Packed:
    """The content of a packed file, checked to be latents of this autoencoder."""
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            latents, recoloured = opened.get_tensor("latents"), opened.get_tensor("recoloured")
            rows = json.loads(opened.get_tensor("rows").numpy().tobytes())
    except (OSError, SafetensorError) as error:
        raise FewstepError(f"no packed latents in {file} ({error})", "leave --latents out to make them") from error
    if metadata.get("vae") != encoder_sha256(load_autoencoder(vae_folder)):
        raise FewstepError(
            f"the latents in {file} were made with another autoencoder than {vae_folder}",
            "name the right one with --vae, or leave --latents out to encode anew",
        )
    return Packed(latents, rows, recoloured)
