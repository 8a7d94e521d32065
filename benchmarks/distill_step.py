"""Times one distillation step at a family's full size, with random weights: fewstep and the published script.

    python benchmarks/distill_step.py [--family sd15] [--alone] [--size 256] [--rank 64] [--dtype fp32] [--rounds 3]

The published arrangement: a student UNet with PEFT layers, a second UNet as teacher, and three separate passes
without gradient (teacher with text, teacher without, target). fewstep: one UNet, which is the teacher with the LoRA
off, and both guidance branches in one batch. The two take turns in one process, so that the ratio holds when the
machine's speed drifts. The floor is the step's floating-point operations divided by this machine's measured rate of
matrix products.
"""

import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from statistics import median
from typing import Literal

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fewstep.cli import main_of
from fewstep.configs import Config
from fewstep.diffusion.guidance import Conditioning, GuidedDenoiser, Network
from fewstep.diffusion.prediction import prediction_named
from fewstep.diffusion.schedule import schedule_from_config
from fewstep.diffusion.solvers import SOLVERS
from fewstep.evaluate.bench.turn import matmul_rate
from fewstep.families import FAMILIES
from fewstep.lora.layers import LoraLayers, initial, target_shapes
from fewstep.models.network import UNetNetwork
from fewstep.models.text import sizes_of
from fewstep.training.losses import lcd_loss, pseudo_huber

SCHEDULER = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").config
SCHEDULE = schedule_from_config(SCHEDULER)
LossStep = Callable[[], Tensor]


class DistillStepConfig(Config):
    """Time one distillation step of fewstep and of the published script's arrangement."""

    family: Literal["sd15", "sd21", "ssd-1b", "sdxl"] = "sd15"
    """The family whose UNet is used."""
    size: int = 256
    """Side of the images in pixels; that of the latents is an eighth."""
    rank: int = 64
    """Rank of the LoRA."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision of autocast; fewstep also keeps the frozen weights in it."""
    rounds: int = 3
    """Measured steps of each, after one step that does not count."""
    alone: bool = False
    """Leave the published arrangement out, whose two UNets of SDXL take 20 GiB and more."""


def inputs(config: DistillStepConfig) -> tuple[Tensor, Tensor, Conditioning, Conditioning]:
    """x_0, eps, a caption's embedding and the empty one, random."""
    family = FAMILIES[config.family]
    width = family.unet["cross_attention_dim"]
    torch.manual_seed(0)
    x_0, eps = torch.randn(2, 1, 4, config.size // 8, config.size // 8)
    conditionings = [Conditioning(torch.randn(1, 77, width)) for _ in range(2)]
    if len(family.text_encoders) == 2:
        sizes = sizes_of(config.size, config.size)
        conditionings = [
            Conditioning(text, torch.randn(1, family.text_encoders[1].width), sizes) for text, *_ in conditionings
        ]
    return x_0, eps, conditionings[0], conditionings[1]


def loss_of(
    student: Network, target: Network, teacher: Callable[[Tensor, object], Tensor], config: DistillStepConfig
) -> Tensor:
    """The LCD loss at s = 499 with DDIM, k = 20."""
    x_0, eps, text, _ = inputs(config)
    denoiser = partial(GuidedDenoiser, prediction=prediction_named("epsilon"), conditioning=text)
    s, t = SCHEDULE.at(499.0), SCHEDULE.at(479.0)
    huber = partial(pseudo_huber, c=0.001)
    return lcd_loss(denoiser(student), denoiser(target), teacher, SOLVERS["ddim"], SCHEDULE, x_0, s, t, eps, huber)


def new_unet(config: DistillStepConfig) -> UNet2DConditionModel:
    """The family's UNet with random weights, frozen."""
    torch.manual_seed(1)
    return UNet2DConditionModel(**FAMILIES[config.family].unet).requires_grad_(False)


def our_step(config: DistillStepConfig) -> LossStep:
    """A step in fewstep's arrangement."""
    unet = new_unet(config).to(torch.bfloat16 if config.dtype == "bf16" else torch.float32)
    network, layers = UNetNetwork(unet), LoraLayers(unet)
    layers.add("student", initial(target_shapes(unet), config.rank, 0), trainable=True)
    layers.switch = (("student", 1.0),)
    _, _, text, empty = inputs(config)

    def bare(x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        with layers.using():
            return network(x, t, conditioning)

    teacher = GuidedDenoiser(bare, prediction_named("epsilon"), text, empty, 8.5)

    def step() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=config.dtype == "bf16"):
            loss = loss_of(network, network, teacher, config)
        loss.backward()
        layers.zero_grad()
        return loss

    return step


def published_step(config: DistillStepConfig) -> LossStep:
    """A step in the arrangement of the published training script."""
    student, teacher_unet = new_unet(config), new_unet(config)
    targets = list(target_shapes(student))
    inject_adapter_in_model(LoraConfig(r=config.rank, lora_alpha=config.rank, target_modules=targets), student)
    _, _, text, empty = inputs(config)
    one = prediction_named("epsilon")
    with_text = GuidedDenoiser(UNetNetwork(teacher_unet), one, text)
    without = GuidedDenoiser(UNetNetwork(teacher_unet), one, empty)

    def teacher(x: Tensor, level: object) -> Tensor:
        guided, unguided = with_text(x, level), without(x, level)
        return unguided + 8.5 * (guided - unguided)

    def step() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=config.dtype == "bf16"):
            loss = loss_of(UNetNetwork(student), UNetNetwork(student), teacher, config)
        loss.backward()
        student.zero_grad()
        return loss

    return step


def seconds(step: LossStep) -> float:
    """Seconds of one step."""
    begun = time.perf_counter()
    step()
    return time.perf_counter() - begun


def peak_gib(arrangement: Callable[[DistillStepConfig], LossStep], config: DistillStepConfig) -> float:
    """The largest resident memory, in GiB, of a process that makes only one step of the arrangement."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_gib, (arrangement, config))


def _peak_gib(arrangement: Callable[[DistillStepConfig], LossStep], config: DistillStepConfig) -> float:
    arrangement(config)()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def run(config: DistillStepConfig) -> None:
    """Print the table: seconds, ratio, floor and memory."""
    arrangements = {"fewstep": our_step} | ({} if config.alone else {"published script's": published_step})
    peaks = [peak_gib(arrangement, config) for arrangement in arrangements.values()]
    steps = [arrangement(config) for arrangement in arrangements.values()]
    with FlopCounterMode(display=False) as counter:
        steps[0]()
    for step in steps[1:]:
        step()
    rounds = [[seconds(step) for step in steps] for _ in range(config.rounds)]
    rate = matmul_rate(torch.bfloat16 if config.dtype == "bf16" else torch.float32, torch.device("cpu"))
    floor = counter.get_total_flops() / rate
    threads = torch.get_num_threads()
    print(f"{config.family}, {config.size} px, batch 1, rank {config.rank}, {config.dtype}, {threads} threads")
    print("| arrangement | s a step | peak GiB |\n|---|---|---|")
    for name, took, peak in zip(arrangements, zip(*rounds, strict=True), peaks, strict=True):
        print(f"| {name} | {median(took):.2f} | {peak:.1f} |")
    print(f"| floor, {counter.get_total_flops() / 1e12:.2f} TFLOP at {rate / 1e12:.2f} TFLOP/s | {floor:.2f} | |")
    print(f"\nfewstep / floor: {median(row[0] for row in rounds) / floor:.2f}")
    if not config.alone:
        print(f"fewstep / published: {median(row[0] / row[1] for row in rounds):.2f}")


if __name__ == "__main__":
    sys.exit(main_of(DistillStepConfig, run))
