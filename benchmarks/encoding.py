"""Times encoding a folder of photos into the cache, beside the autoencoder alone.

    python -m benchmarks.encoding [--family sd15] [--size 256] [--images 64] [--device auto] [--dtype fp32] [--rounds 3]

The autoencoder has the family's size and random weights. It is the floor: it encodes as many pictures, in batches as
large, which lie decoded in memory. The photos are JPEGs of noise that looks like clouds, of 1.5 times the size and the
shape 4:3, all with one caption. The two take turns in one process, so that the ratio holds when the machine's speed
drifts. Then the same folder is opened again, and an index of many samples is written and opened.
"""

import io
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from fewstep.assets import MODEL
from fewstep.cli import main_of
from fewstep.configs import Config
from fewstep.configs.base import Device
from fewstep.data.cache import INDEX, Encoded, encode, read_index
from fewstep.data.cache.batches import BATCH
from fewstep.data.cache.encoded import Table
from fewstep.data.cache.index import write_index
from fewstep.data.cache.store import MOST_ROWS
from fewstep.data.framing import Framing
from fewstep.data.sources import FileSample
from fewstep.families import FAMILIES
from fewstep.images import covering
from fewstep.models.load import DTYPES, load_model, pick_device, speed_up
from fewstep.models.model import Model
from fewstep.models.quiet import quiet

SCALE, SHAPE = 1.5, 4 / 3  # of the photos: their height in sides of a training picture, their width in heights


class EncodingConfig(Config):
    """Time encoding photos, beside the autoencoder alone."""

    family: str = "sd15"
    """The family whose autoencoder is used; emoji is the small model that ships."""
    size: int = 256
    """Pixels of a side of the training pictures."""
    images: int = 64
    """How many photos."""
    device: Device = "auto"
    """Where the autoencoder computes."""
    dtype: str = "fp32"
    """Precision of the autoencoder."""
    rounds: int = 3
    """Measured rounds of each, after one that does not count."""
    samples: int = 1_000_000
    """Samples of the index that is opened."""


@quiet()
def autoencoder_model(config: EncodingConfig) -> Model:
    """The small model that ships, with an autoencoder of the family's size."""
    model = load_model(MODEL, device=pick_device(config.device))
    if config.family == MODEL:
        return model
    torch.manual_seed(0)
    vae = AutoencoderKL(**FAMILIES[config.family].vae).eval().requires_grad_(False)
    speed_up(vae)
    return replace(model, vae=vae.to(model.device, DTYPES[config.dtype]))


def photo(number: int, size: int) -> bytes:
    """A JPEG of clouds."""
    height = round(size * SCALE)
    width = round(height * SHAPE)
    noise, random = np.zeros((height, width, 3)), np.random.default_rng(number)
    for octave in range(2, 8):
        coarse = random.integers(0, 256, (2**octave, 2**octave, 3), dtype=np.uint8)
        noise += np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)) / 2 ** (
            octave - 1
        )
    data = io.BytesIO()
    Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=92)
    return data.getvalue()


class Seconds(NamedTuple):
    """How long something took."""

    passed: float
    worked: float  # of a processor, in the thread that runs the autoencoder: other programs do not count in it


def clock() -> Seconds:
    """The time now."""
    return Seconds(time.perf_counter(), time.thread_time())


def since(begun: Seconds) -> Seconds:
    """The time since then."""
    return Seconds(*(now - then for now, then in zip(clock(), begun, strict=True)))


def alone(model: Model, pictures: Sequence[torch.Tensor]) -> Seconds:
    """For the autoencoder to encode batches of pictures that are decoded."""
    begun = clock()
    for batch in pictures:
        mean, _ = model.posterior(batch.to(model.device).float() / 127.5 - 1)
        mean.half().cpu()
    return since(begun)


def through_the_cache(model: Model, samples: Sequence[FileSample], size: int, folder: Path) -> tuple[Seconds, Seconds]:
    """To encode the photos into an empty cache, and to open them again."""
    os.environ["FEWSTEP_CACHE"] = str(folder)
    times = []
    for _ in range(2):
        begun = clock()
        encode(samples, model, Framing(size))
        times.append(since(begun))
    return times[0], times[1]


def opening(samples: int, folder: Path) -> tuple[float, float]:
    """Seconds to open an index of so many samples and to read a batch's places, and its size in MB."""
    numbers = torch.arange(samples)
    places = torch.stack([numbers // MOST_ROWS, numbers % MOST_ROWS], 1).int()
    files = {name: [folder / f"{name}-{n:06}" for n in range(-(-samples // MOST_ROWS))] for name in ("image", "text")}
    for path in (*files["image"], *files["text"]):
        path.write_bytes(b"rows")
    tables = Table(files["image"], places), Table(files["text"], places.clone())
    shape = (numbers % 9).to(torch.int16)
    write_index(folder / INDEX, Encoded(*tables, first_captions=torch.arange(samples + 1), shape=shape))
    begun = time.perf_counter()
    found = read_index(folder / INDEX)
    assert found is not None, "it was written just now"
    assert sum(map(len, found.groups)) == samples
    return time.perf_counter() - begun, (folder / INDEX).stat().st_size / 1e6


def run(config: EncodingConfig) -> None:
    """Print the tables."""
    model, rounds = autoencoder_model(config), []
    with TemporaryDirectory() as place:
        folder = Path(place)
        samples = [FileSample(folder / f"{number:05}.jpg", ("clouds",)) for number in range(config.images)]
        for number, sample in enumerate(samples):
            sample.path.write_bytes(photo(number, config.size))
        pictures = []
        for sample in samples:
            cut = covering(Image.open(sample.path).convert("RGB"), config.size, config.size)
            pictures.append(torch.from_numpy(np.array(cut)).permute(2, 0, 1))
        batches = [torch.stack(pictures[start : start + BATCH]) for start in range(0, len(pictures), BATCH)]
        for number in range(config.rounds + 1):
            floor = alone(model, batches)
            rounds.append((floor, *through_the_cache(model, samples, config.size, folder / f"cache {number}")))
        (folder / "index").mkdir()
        seconds, size = opening(config.samples, folder / "index")
    floors, firsts, seconds_again = zip(*rounds[1:], strict=True)
    print(f"{config.family}, {config.images} photos, {config.size} px, {config.dtype}, {model.device}, "
          f"{torch.get_num_threads()} threads, {os.cpu_count()} processors")  # fmt: skip
    print("| arrangement | images/s |\n|---|---|")
    print(f"| the autoencoder alone | {config.images / median(x.passed for x in floors):.2f} |")
    print(f"| into the cache | {config.images / median(x.passed for x in firsts):.2f} |")
    pairs = list(zip(floors, firsts, strict=True))
    print(f"\ncache / autoencoder: {median(a.passed / b.passed for a, b in pairs):.2f}")
    print(f"in processor time of the autoencoder's thread: {median(a.worked / b.worked for a, b in pairs):.2f}")
    print(f"opened again: {median(x.passed for x in seconds_again):.2f} s")
    print(f"an index of {config.samples:,} samples: {size:.0f} MB, opened in {seconds:.2f} s")


if __name__ == "__main__":
    sys.exit(main_of(EncodingConfig, run))
