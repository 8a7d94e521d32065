"""One turn of an arrangement, in a process of its own: loading, the first picture, more pictures, batches, memory."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from fewstep.errors import FewstepError
from fewstep.evaluate.bench.arrangements import Opened, opened
from fewstep.evaluate.bench.plan import BenchPlan
from fewstep.events import ignore, telling
from fewstep.models.quiet import quiet

PICTURE = "picture.png"
REST = "rest"  # the part that is not text, network or decoder
LONG_S = 60.0  # a picture that takes longer is drawn once
GAIN = 1.02  # times as many pictures a second, for which a larger batch is tried
WARM_S = 10.0  # a batch that is expected to take longer is drawn once, without one before it that warms up
GIVE_UP_S = 240.0  # no batch is tried that is expected to take longer
SMALL = 256  # side of matrices whose product takes little time in any precision


class TurnPlan(NamedTuple):
    """What is done in a turn."""

    pictures: int  # after the first
    batches: tuple[int, ...]  # numbers of pictures drawn together, tried in order while they gain


class Turn(NamedTuple):
    """What a turn took, in seconds; or the reason why it could not be."""

    load: float = 0.0
    first: float = 0.0  # the first picture, with its file
    pictures: tuple[dict[str, float], ...] = ()  # of each of the next: part -> seconds; with REST they are all of it
    rates: dict[int, float] = {}  # noqa: RUF012  pictures drawn together -> pictures a second
    peak_bytes: int | None = None  # of memory, of the GPU's if there is one, with single pictures; None = not known
    dtype: str = ""
    engine: str = ""  # of fewstep: what auto stands for
    png: bytes = b""  # the first picture's file
    missing: str = ""  # what is not installed, or went wrong


def taken(arrangement: str, plan: BenchPlan, what: TurnPlan) -> Turn:
    """A turn of this arrangement."""
    with telling(ignore), quiet():
        begun = time.perf_counter()
        try:
            ready = opened(arrangement, plan)
        except FewstepError as error:
            return Turn(missing=error.whole)
        except (ImportError, ValueError, OSError) as error:  # as diffusers says that something is not installed
            return Turn(missing=" ".join(str(error).split()))
        load = time.perf_counter() - begun
        first = sum(picture(ready, plan.spare).values())
        png = (plan.spare / PICTURE).read_bytes()
        many = min(what.pictures, 1) if first > LONG_S else what.pictures
        pictures = tuple(picture(ready, plan.spare) for _ in range(many))
        peak = peak_bytes(ready.device)
        alone = min((sum(one.values()) for one in pictures), default=first)
        rates = rates_of(ready, what.batches, alone)
        return Turn(load, first, pictures, rates, peak, ready.dtype, ready.engine, png)


def picture(ready: Opened, folder: Path) -> dict[str, float]:
    """Part -> seconds of a picture, from the prompt to its file."""
    begun = time.perf_counter()
    batch = ready.draw(1)
    batch.images[0].save(folder / PICTURE)
    parts = dict(batch.seconds)
    return parts | {REST: time.perf_counter() - begun - sum(parts.values())}


def rates_of(ready: Opened, batches: Sequence[int], alone_s: float) -> dict[int, float]:
    """Pictures a second when so many are drawn together, without their files, as long as more together gain.

    alone_s: seconds of one picture alone.
    """
    rates: dict[int, float] = {}
    for count in batches:
        expected = count / max(rates.values(), default=1 / alone_s)
        if rates and expected > GIVE_UP_S:
            break
        try:
            times = [batch_s(ready, count) for _ in range(1 if expected > WARM_S else 2)]  # the first of two warms up
        except (RuntimeError, MemoryError):  # too large for the memory
            break
        best = max(rates.values(), default=0.0)
        rates[count] = count / min(times)
        if rates[count] < GAIN * best:
            break
    return rates or {1: 1 / alone_s}


def batch_s(ready: Opened, count: int) -> float:
    """Seconds of a batch."""
    begun = time.perf_counter()
    ready.draw(count)
    return time.perf_counter() - begun


def peak_bytes(device: torch.device) -> int | None:
    """The most memory that this process had so far: on a GPU the GPU's, else the system's; None if it is not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return None


def matmul_rate(dtype: torch.dtype, device: torch.device, side: int | None = None) -> float:
    """Floating-point operations a second in a square matrix product, the best of ten after a warm-up.

    side: of the matrices; by default one that keeps the device busy, 2048 on a CPU and 8192 on a GPU, or less where a
    product would take more than a second, as in a precision that the device has no instructions for.
    """
    if side is None:
        side, slowest = (2048 if device.type == "cpu" else 8192), product_s(dtype, device, SMALL, 2)
        while side > SMALL and slowest * (side / SMALL) ** 3 > 1:
            side //= 2
    return 2 * side**3 / product_s(dtype, device, side, 10)


def product_s(dtype: torch.dtype, device: torch.device, side: int, times: int) -> float:
    """The seconds of the product of two square matrices, the least of so many times after a warm-up."""
    a, b = torch.randn(2, side, side).to(device, dtype)
    found = []
    for _ in range(1 + times):
        begun = time.perf_counter()
        product = a @ b
        float(product[0, 0])  # waits for a GPU
        found.append(time.perf_counter() - begun)
    return min(found[1:])
