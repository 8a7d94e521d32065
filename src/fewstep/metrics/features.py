"""Features of pictures. They are kept in files, so that each picture goes through a network only once."""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep.events import counted
from fewstep.images import read_image
from fewstep.io import atomic_path, cache_dir, sha256_bytes

CHUNK = 32  # real images per file of features


class FeatureNetwork(Protocol):
    """A network that makes features (B, D) from pixels (B, 3, H, W) in [-1, 1]."""

    @property
    def label(self) -> str:
        """Its name and its resize."""

    @property
    def sha256(self) -> str:
        """SHA-256 of its weights."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """The features, on the network's device."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Its weights."""


class Batches(Protocol):
    """Pictures in files, one batch per file."""

    @property
    def files(self) -> Sequence[Path]:
        """One file per batch, in order."""

    def batches(self) -> Iterator[Tensor]:
        """Pixels (B, 3, H, W) in [-1, 1], batch by batch."""


class Quarters(NamedTuple):
    """The four quarters of each picture, as separate pictures. Their features show finer details."""

    pictures: Batches

    @property
    def files(self) -> list[Path]:
        """One name per batch, in order. The files need not exist; features of the quarters are kept next to them."""
        return [file.with_suffix(".quarters.safetensors") for file in self.pictures.files]

    def batches(self) -> Iterator[Tensor]:
        """Pixels (4 B, 3, ceil(H / 2), ceil(W / 2)) in [-1, 1]: the quarters of a picture one after another."""
        for x in self.pictures.batches():
            h, w = (-(-side // 2) for side in x.shape[-2:])
            corners = (x[..., :h, :w], x[..., :h, -w:], x[..., -h:, :w], x[..., -h:, -w:])
            yield torch.stack(corners, dim=1).flatten(0, 1)


class RealImage(Protocol):
    """An image that is not read yet, such as a sample of a source."""

    @property
    def key(self) -> str:
        """Its name, for errors."""

    def open(self) -> bytes:
        """The bytes of its file."""


class Real(NamedTuple):
    """A network's features of real images."""

    source: str
    sha256: str  # of all images
    features: Tensor  # (M, D), on the CPU


def device_of(network: FeatureNetwork | nn.Module) -> torch.device:
    """The device of a network."""
    return next(network.parameters()).device


def features_of(network: FeatureNetwork, pictures: Batches, title: str = "features") -> Tensor:
    """Features (N, D) of pictures, on the CPU. Those of a batch are kept next to its file."""
    device, suffix, parts = device_of(network), f".{identity(network)}.safetensors", []
    batches = zip(pictures.files, pictures.batches(), strict=True)
    for file, pixels in counted(batches, title, "batch", len(pictures.files)):
        parts.append(kept(file.with_suffix(suffix), lambda pixels=pixels: network(pixels.to(device))))  # type: ignore[misc]
    return torch.cat(parts)


def read_real(images: Sequence[RealImage], source: str, size: int, network: FeatureNetwork) -> Real:
    """Features of real images, which are scaled to cover `size` pixels and cut at the centre, like training data.

    source: the images' name. The files of features are made in random order, so that processes that run at the same
    time find each other's files and share the work.
    """
    chunks = [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
    device, hashes, parts = device_of(network), [""] * len(chunks), [torch.empty(0)] * len(chunks)
    order = random.SystemRandom().sample(range(len(chunks)), len(chunks))
    for i in counted(order, "reference", "batch", len(order)):

        def make(chunk: Sequence[RealImage] = chunks[i]) -> Tensor:
            pixels = [read_image(image.open(), size, size, image.key) for image in chunk]
            return network(torch.stack(pixels).to(device))

        hashes[i] = sha256_bytes(*(sha256_bytes(image.open()).encode() for image in chunks[i]))
        name = sha256_bytes(f"{identity(network)} {size} {hashes[i]}".encode())
        parts[i] = kept(cache_dir() / "compare" / f"real-{name}.safetensors", make)
    return Real(source, sha256_bytes(*(value.encode() for value in hashes)), torch.cat(parts))


def identity(network: FeatureNetwork) -> str:
    """A short hash of the network and its resize, for names of feature files."""
    return sha256_bytes(network.label.encode(), network.sha256.encode())[:12]


def kept(file: Path, make: Callable[[], Tensor]) -> Tensor:
    """The features (N, D) in `file`. If it does not exist, they are made and written there."""
    try:
        with safe_open(file, "pt") as opened:
            found: Tensor = opened.get_tensor("features")
            return found
    except (OSError, SafetensorError):
        features = make().cpu()
        with atomic_path(file) as temporary:
            save_file({"features": features}, temporary)
        return features
