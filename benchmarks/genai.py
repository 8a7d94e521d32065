"""Times a picture by the engine openvino and by OpenVINO GenAI's own pipeline, from one exported folder, in turns.

    python -m benchmarks.genai [--family sd15] [--size 512] [--rounds 5]

It needs `pip install openvino-genai`. The weights are random. So is the LCM-LoRA, which is folded in when the folder is
exported, because GenAI refuses it. Both draw in 4 steps by LCM's sampler, without guidance.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal

from fewstep.bridge.export import export
from fewstep.cli import main_of
from fewstep.configs import Config, ExportConfig, build
from fewstep.errors import UsageError
from fewstep.families import FAMILIES
from fewstep.models.random_weights import random_folder, random_lora
from fewstep.session import Session

RANK, STEPS = 64, 4


class GenaiBenchmarkConfig(Config):
    """Draw from one exported folder with fewstep and with OpenVINO GenAI."""

    family: Literal["sd15", "sd21", "sdxl"] = "sd15"
    """Of which size."""
    size: int = 512
    """Side of the pictures in pixels."""
    rounds: int = 5
    """Turns of each; the median counts."""


def exported(config: GenaiBenchmarkConfig, spare: Path) -> Path:
    """A folder of graphs of random weights."""
    family = FAMILIES[config.family]
    model = random_folder(spare / config.family, family)
    lora = random_lora(spare / "lora.safetensors", family, RANK)
    export(build(ExportConfig, model=str(model), loras=(str(lora),), to="openvino", out=spare / "exported"))
    return spare / "exported"


def own(folder: Path, size: int) -> Callable[[int], object]:
    """A function that draws a picture with fewstep."""
    session = Session(str(folder), [])
    options: dict[str, Any] = {"steps": STEPS, "guidance_scale": 1.0, "solver": "lcm", "width": size, "height": size}
    return lambda number: list(session.draw(f"a red fox {number}", **options))


def theirs(folder: Path, size: int) -> Callable[[int], object]:
    """A function that draws a picture with OpenVINO GenAI."""
    try:
        import openvino_genai as genai
    except ImportError:
        raise UsageError("OpenVINO GenAI is not installed", "pip install openvino-genai") from None
    pipeline = genai.Text2ImagePipeline(str(folder), "CPU")
    options: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "width": size, "height": size}
    return lambda number: pipeline.generate(f"a red fox {number}", rng_seed=number, **options)


def seconds(draw: Callable[[int], object], number: int) -> float:
    """How long a picture takes."""
    begun = time.perf_counter()
    draw(number)
    return time.perf_counter() - begun


def run(config: GenaiBenchmarkConfig) -> None:
    """Print the medians and their ratio."""
    with TemporaryDirectory() as spare:
        folder = exported(config, Path(spare))
        ways = [make(folder, config.size) for make in (own, theirs)]
        for draw in ways:
            draw(0)
        turns = [[seconds(draw, number) for draw in ways] for number in range(1, config.rounds + 1)]
    fewstep, genai = (median(column) for column in zip(*turns, strict=True))
    ratio = median(other / mine for mine, other in turns)
    print(f"{config.family}, {config.size} px, {STEPS} steps, seconds a picture:", end=" ")
    print(f"fewstep {fewstep:.2f}, GenAI {genai:.2f}; GenAI / fewstep {ratio:.2f}")


if __name__ == "__main__":
    sys.exit(main_of(GenaiBenchmarkConfig, run))
