"""Times a network call of the engine openvino in bf16 and in int8, in turns, and compares their pictures with fp32's.

    python -m benchmarks.int8 [--pictures 32] [--rounds 20]         emoji with lcm
    python -m benchmarks.int8 --random sd15 [--rounds 20]           random weights, whose pictures say nothing: the time

It needs the extra int8. Quantizing SD 1.5's size takes about 12 minutes and 11 GiB.
"""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fewstep.cli import main_of
from fewstep.configs import Config
from fewstep.engines.engine import NetworkOptions
from fewstep.evaluate.prompts import prompts_for
from fewstep.families import FAMILIES
from fewstep.metrics.psnr import psnr
from fewstep.models.random_weights import random_folder
from fewstep.session import Session

DTYPES = ("bf16", "int8")


class Int8BenchmarkConfig(Config):
    """Compare int8 with bf16: the time of a network call, and how near pictures are to fp32."""

    random: Literal["sd15", "sd21"] | None = None
    """Measure random weights of this family's full size."""
    rounds: Annotated[int, Field(ge=1)] = 20
    """Calls of each, in turns; the median counts."""
    pictures: Annotated[int, Field(ge=1)] = 32
    """Pictures of emoji, of the names that ship, one each."""


def opened(model: str, dtype: str) -> Session:
    """A session of the engine openvino."""
    return Session(model, engine="openvino", dtype=dtype, device="cpu")


def caller(session: Session, stack: ExitStack) -> Callable[[], Tensor]:
    """A function that calls the session's network once, for one picture without guidance."""
    facts = session.facts
    conditioning = session.engine.embed(("a red fox",), facts.size, facts.size)
    x = torch.randn(1, *facts.latent_shape(facts.size, facts.size), generator=torch.Generator().manual_seed(0))
    network = stack.enter_context(session.engine.network(NetworkOptions()))
    return lambda: network(x, torch.tensor([499.0]), conditioning)


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def print_times(model: str, rounds: int) -> None:
    """The medians of both types and their ratio."""
    with ExitStack() as stack:
        calls = [caller(opened(model, dtype), stack) for dtype in DTYPES]
        for call in calls:
            call()
        turns = [[seconds(call) for call in calls] for _ in range(rounds)]
    bf16, int8 = (median(column) for column in zip(*turns, strict=True))
    print(f"a network call: bf16 {1000 * bf16:.1f} ms, int8 {1000 * int8:.1f} ms; bf16 / int8 {bf16 / int8:.2f}")


def print_psnr(model: str, count: int) -> None:
    """How near pictures of bf16 and int8 are to the same pictures of fp32."""
    texts = [prompt.text for prompt in islice(prompts_for(Path("names"), None).prompts, count)]
    exact, *others = (
        torch.stack([picture.pixels for picture in opened(model, dtype).draw(texts)]) for dtype in ("fp32", *DTYPES)
    )
    for dtype, pixels in zip(DTYPES, others, strict=True):
        found = psnr(exact, pixels)
        print(f"{dtype}: PSNR to fp32 of {len(texts)} pictures: median {found.median():.1f} dB,", end=" ")
        print(f"worst {found.min():.1f}, {int((found < 20).sum())} below 20")


def run(config: Int8BenchmarkConfig) -> None:
    """Print the times, and of emoji the PSNR."""
    if config.random is None:
        print_times("emoji", config.rounds)
        print_psnr("emoji", config.pictures)
        return
    with TemporaryDirectory() as spare:
        print_times(str(random_folder(Path(spare) / config.random, FAMILIES[config.random])), config.rounds)


if __name__ == "__main__":
    sys.exit(main_of(Int8BenchmarkConfig, run))
