"""EfficientNet-Lite0's features of every drawing, computed once, for measuring agreement and for the kit."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.events import counted
from fewstep.io import atomic_path, sha256_bytes
from fewstep.metrics.agreement import Pictures
from fewstep.metrics.networks import EfficientNet, load_efficientnet
from fewstep.models.load import pick_device
from recipes.emoji.built import read_metadata, read_pixels, to_signed
from recipes.emoji.latents import images_sha256

FORMAT = "1"  # raise when the content of a file of features changes
BATCH = 32


def drawing_features(images: Path, cache: Path, splits: Collection[str] | None = None) -> Pictures:
    """Features (N, 1280), float32, of the drawings in `images`, in the order of its metadata.

    splits: None = all. The features are computed at the first call and kept in `cache`, in a file whose name is the
    hash of everything that decides its content.
    """
    key = sha256_bytes(FORMAT.encode(), EfficientNet.label.encode(), images_sha256(images).encode())
    file, rows = cache / f"features-{key[:12]}.safetensors", read_metadata(images)
    if not file.exists():
        take_features(images, rows, file)
    kept = [i for i, row in enumerate(rows) if splits is None or row["split"] in splits]
    styles, concepts = ([rows[i][key] for i in kept] for key in ("style", "concept"))
    return Pictures(read_features(file)[kept], styles, concepts)


def take_features(images: Path, rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Write the features of these drawings to `file`, in half precision."""
    device = pick_device("auto")
    network, features = load_efficientnet(device), []
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    for batch in counted(batches, "taking features", "image", len(rows), len):
        drawings = [read_pixels(images / row["file_name"]) for row in batch]
        features.append(network(to_signed(torch.stack(drawings)).to(device)).half().cpu())
    with atomic_path(file) as temporary:
        save_file({"features": torch.cat(features)}, temporary, {"format": FORMAT, "features": EfficientNet.label})


def read_features(file: Path) -> Tensor:
    """The features in `file`, float32."""
    try:
        with safe_open(file, "pt") as opened:
            features: Tensor = opened.get_tensor("features")
            return features.float()
    except (OSError, SafetensorError) as error:
        raise FewstepError(f"unreadable features: {file} ({error})", "delete the file to compute them again") from error
