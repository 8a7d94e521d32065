"""Load on `fewstep serve`: pictures a second under many clients beside the engine's own rate, and an overload.

    python -m benchmarks.serve [--clients 32] [--seconds 20] [--overload 60]

The server is a process of its own with the embedded model; the clients are one other process, on the same cores. First
a session draws batches of every size, which gives the best rate that the engine has. Then the clients ask, each for one
picture after another, without a pause. In the overload ten times as many ask. Only answers 200 and 429 are right.
"""

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from multiprocessing import get_context
from pathlib import Path
from statistics import quantiles
from typing import Annotated, NamedTuple

import httpx
from pydantic import Field

from fewstep.cli import main_of
from fewstep.configs import Config
from fewstep.session import Session

BATCHES = (1, 2, 4, 8, 16)
ROUNDS = 5
TIMES = 10  # as many clients in the overload
BODY = {"prompts": "a red fox", "steps": 4}


class ServeBenchmarkConfig(Config):
    """Ask a server for pictures, many clients at once."""

    clients: Annotated[int, Field(ge=1)] = 32
    """Clients that ask at once."""
    seconds: Annotated[float, Field(gt=0)] = 20.0
    """How long they ask."""
    overload: Annotated[float, Field(ge=0)] = 60.0
    """How long ten times as many ask; 0 leaves it out."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Of the server."""


class Answers(NamedTuple):
    """What clients got."""

    statuses: Counter[str]
    latencies_s: list[float]  # of pictures
    seconds: float

    @property
    def rate(self) -> float:
        """Pictures a second."""
        return self.statuses["200"] / self.seconds


def engine_rates() -> dict[int, float]:
    """Batch size -> pictures a second of a session, in a process that does nothing else."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_engine_rates)


def _engine_rates() -> dict[int, float]:
    rates: dict[int, float] = {}
    with Session(engine="torch") as session:
        for size in BATCHES:
            draw = lambda size=size: list(session.draw(BODY["prompts"], steps=4, count=size, batch_size=size))  # noqa: E731
            draw()
            begun = time.perf_counter()
            for _ in range(ROUNDS):
                draw()
            rates[size] = ROUNDS * size / (time.perf_counter() - begun)
    return rates


async def ask(address: str, clients: int, seconds: float) -> Answers:
    """So many clients ask for so long; then each waits for its last answer."""
    statuses: Counter[str] = Counter()
    latencies: list[float] = []
    begun = time.perf_counter()

    async def client(number: int, http: httpx.AsyncClient) -> None:
        asked = 0
        while time.perf_counter() - begun < seconds:
            sent = time.perf_counter()
            try:
                answer = await http.post("/v1/sample", json=BODY | {"seed": 1000 * number + asked})
            except httpx.HTTPError as error:
                statuses[type(error).__name__] += 1
                continue
            statuses[str(answer.status_code)] += 1
            asked += 1
            if answer.status_code == 200:
                latencies.append(time.perf_counter() - sent)
            elif answer.status_code == 429:
                await asyncio.sleep(min(1.0, float(answer.headers["retry-after"])))

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as http:
        await asyncio.gather(*(client(number, http) for number in range(clients)))
    return Answers(statuses, latencies, time.perf_counter() - begun)


def memory_mib(process: int) -> float:
    """What a process holds in memory."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    found = re.search(r"VmRSS:\s+(\d+)", status)
    return int(found[1]) / 1024 if found else float("nan")


def run(config: ServeBenchmarkConfig) -> None:
    """Print the rates and the latencies."""
    rates = engine_rates()
    best = max(rates, key=lambda size: rates[size])
    print("session, pictures/s by batch:", json.dumps({size: round(rate, 1) for size, rate in rates.items()}))
    typed = [sys.executable, "-m", "fewstep", "serve", "--port", "0", "--batch-size", str(config.batch_size)]
    with subprocess.Popen(typed, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            address = next(found[0] for line in server.stderr if (found := re.search(r"http://\S+:\d+", line)))
            asyncio.run(ask(address, 2, 2))  # warms it up
            print("\n| clients | answers | pictures/s | / best batch | p50 s | p95 s | p99 s | server MiB |")
            print("|---|---|---|---|---|---|---|---|")
            for clients, seconds in ((config.clients, config.seconds), (TIMES * config.clients, config.overload)):
                if seconds:
                    tell(clients, asyncio.run(ask(address, clients, seconds)), rates[best], memory_mib(server.pid))
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(120)
    print(f"\nbest batch {best}; SIGTERM ended the server with exit code {server.returncode}")


def tell(clients: int, answers: Answers, best: float, memory: float) -> None:
    """A line of the table."""
    cuts = quantiles(answers.latencies_s, n=100)
    statuses = ", ".join(f"{count} x {status}" for status, count in sorted(answers.statuses.items()))
    print(
        f"| {clients} | {statuses} | {answers.rate:.1f} | {answers.rate / best:.2f} |"
        f" {cuts[49]:.2f} | {cuts[94]:.2f} | {cuts[98]:.2f} | {memory:.0f} |"
    )


if __name__ == "__main__":
    sys.exit(main_of(ServeBenchmarkConfig, run))
