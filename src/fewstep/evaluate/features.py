"""Features of images, kept in files beside them, so that each image goes through a network once."""

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from fewstep.evaluate.drawn import Drawn
from fewstep.evaluate.prompts import reference_files
from fewstep.images import read_image
from fewstep.io import atomic_path, cache_dir, sha256_bytes, sha256_file

CHUNK = 32  # real images a file


class Network(Protocol):
    """What makes features (B, D) of pixels (B, 3, H, W) in [-1, 1]."""

    @property
    def label(self) -> str:
        """Its name and its resize."""

    @property
    def sha256(self) -> str:
        """Of its weights."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """The features, where the network is."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Its weights."""


class Real(NamedTuple):
    """Real images, as a network sees them."""

    source: str
    sha256: str  # of all images
    features: Tensor  # (M, D), on the CPU


def device_of(network: Network | nn.Module) -> torch.device:
    """Where a network is."""
    return next(network.parameters()).device


def features_of(network: Network, drawn: Drawn, title: str = "") -> Tensor:
    """Features (N, D) of a row's images, on the CPU."""
    device, suffix, parts = device_of(network), f".{identity(network)}.safetensors", []
    batches = zip(drawn.files, drawn.batches(), strict=True)
    for file, pixels in tqdm(
        batches, desc=title, total=len(drawn.files), unit="batch", file=sys.stderr, leave=False, disable=None
    ):
        parts.append(kept(file.with_suffix(suffix), lambda pixels=pixels: network(pixels.to(device))))  # type: ignore[misc]
    return torch.cat(parts)


def read_real(source: Path, size: int, network: Network) -> Real:
    """The images of a folder or table, scaled to cover `size` pixels and cut at the centre, as training data is.

    The files of features are made in no order, so that processes at once find each other's and share the work.
    """
    paths = reference_files(source)
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    device, hashes, parts = device_of(network), [""] * len(chunks), [torch.empty(0)] * len(chunks)
    order = random.SystemRandom().sample(range(len(chunks)), len(chunks))
    for i in tqdm(order, desc="reference", unit="batch", file=sys.stderr, leave=False, disable=None):

        def make(chunk: list[Path] = chunks[i]) -> Tensor:
            return network(torch.stack([read_image(path, size, size) for path in chunk]).to(device))

        hashes[i] = sha256_bytes(*(sha256_file(path).encode() for path in chunks[i]))
        name = sha256_bytes(f"{identity(network)} {size} {hashes[i]}".encode())
        parts[i] = kept(cache_dir() / "compare" / f"real-{name}.safetensors", make)
    return Real(str(source), sha256_bytes(*(value.encode() for value in hashes)), torch.cat(parts))


def identity(network: Network) -> str:
    """A short hash of the network and its resize, for names of files of features."""
    return sha256_bytes(network.label.encode(), network.sha256.encode())[:12]


def kept(file: Path, make: Callable[[], Tensor]) -> Tensor:
    """The features (N, D) in `file`; made and written there if they are not."""
    try:
        with safe_open(file, "pt") as opened:
            found: Tensor = opened.get_tensor("features")
            return found
    except (OSError, SafetensorError):
        features = make().cpu()
        with atomic_path(file) as temporary:
            save_file({"features": features}, temporary)
        return features
