"""Kills training runs at random moments and goes on with them: `python -m tests.training.killing FOLDER KILLS RANKS`.

FOLDER has model/ and shards-{0..2}.tar. Runs are forks of this process, which has imported all and computed nothing, so
that few of the kills hit imports. A run that ends is compared with the one that nobody disturbed, and begun anew.
"""

import os
import random
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

from safetensors.torch import load_file

from fewstep.cli import main
from fewstep.training import run as _  # noqa: F401  (imports all that a run does)

LONGEST_S = 8.0  # of a run, before it is killed


def begin(folder: Path, out: Path, cache: Path, ranks: int, workers: int) -> list[int]:
    """The processes of a run that goes on from what is in `out`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    typed = ["finetune", "--model", folder / "model", "--data", folder / "shards-{0..2}.tar", "--out", out, "--resume"]
    typed += ["--steps", 60, "--batch-size", 4 // ranks, "--accumulate", 2, "--rank", 2, "--checkpoint-every", 4]
    typed += ["--workers", workers, "--random-flip", "--device", "cpu", "--log-every", 1]
    processes = []
    for rank in range(ranks):
        if (process := os.fork()) == 0:
            several = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1"}
            several |= {"MASTER_PORT": port, "ACCELERATE_USE_CPU": "true", "LOCAL_WORLD_SIZE": ranks}
            os.environ |= {name: str(value) for name, value in (several if ranks > 1 else {}).items()}
            os.environ["FEWSTEP_CACHE"] = str(cache)
            with (folder / "log").open("a") as log:
                os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
            os._exit(main([str(word) for word in typed]))
        processes.append(process)
    return processes


def ended(processes: list[int], within_s: float) -> bool:
    """Whether all processes end well within this time. Those that do not are killed, in random order."""
    until, codes = time.monotonic() + within_s, dict[int, int]()
    while len(codes) < len(processes) and time.monotonic() < until:
        for process in processes:
            if process not in codes and (found := os.waitpid(process, os.WNOHANG))[0]:
                codes[process] = os.waitstatus_to_exitcode(found[1])
        time.sleep(0.01)
    for process in random.sample(processes, len(processes)):
        if process not in codes:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
    assert set(codes.values()) <= {0}, "a run that nobody killed failed: see log"
    return len(codes) == len(processes)


def killed(folder: Path, kills: int, ranks: int) -> None:
    """Raise AssertionError if a run that is killed again and again ends otherwise than one that is not."""
    assert ended(begin(folder, folder / "whole", folder / "whole cache", ranks, 2), 300)
    whole = load_file(folder / "whole" / "lora.safetensors")
    lines = steps(folder / "whole")
    random.seed(0)
    done = finished = 0
    out, cache = folder / "out", folder / "cache"
    while done < kills or not finished:
        if done < kills and not ended(
            begin(folder, out, cache, ranks, random.choice((1, 2, 3))), random.uniform(0.05, LONGEST_S)
        ):
            done += 1
            continue
        assert ended(begin(folder, out, cache, ranks, 2), 300)
        found = load_file(out / "lora.safetensors")
        assert found.keys() == whole.keys()
        assert all((found[name] == whole[name]).all() for name in whole), "other bits"
        assert steps(out) == lines, "other losses"
        finished += 1
        if done < kills:
            shutil.rmtree(out)
            shutil.rmtree(cache)
    print(f"{done} kills of {ranks} process(es), {finished} runs ended as the one that was left alone")


def steps(out: Path) -> list[str]:
    """The lines of the metrics, without the rates."""
    return [line.split('"images_per_s"')[0] for line in (out / "metrics.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    killed(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
