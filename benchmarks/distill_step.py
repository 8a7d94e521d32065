"""Times one distillation step at a family's full size, with random weights: fewstep and the published script.

    python -m benchmarks.distill_step [--family sd15] [--alone] [--size 256] [--rank 64] [--dtype fp32] [--rounds 3]

The published arrangement: a student UNet in float32 with PEFT layers, under autocast; a second UNet as teacher; three
separate passes without gradient (teacher with text, teacher without, target). fewstep: one UNet, which is the teacher
with the LoRA off, its frozen weights in the precision of the arithmetic, and both guidance branches in one batch. The
two take turns, each turn in a fresh process, which also tells its peak memory. The floor is the step's floating-point
operations divided by this machine's measured rate of matrix products in the same precision.
"""

import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Literal, NamedTuple

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fewstep.cli import main_of
from fewstep.configs import Config, DistillConfig, build
from fewstep.diffusion.guidance import Conditioning, GuidedDenoiser, Network
from fewstep.diffusion.prediction import prediction_named
from fewstep.diffusion.schedule import schedule_from_config
from fewstep.diffusion.solvers import SOLVERS
from fewstep.evaluate.bench.process import in_own_process
from fewstep.evaluate.bench.run import instructions
from fewstep.evaluate.bench.turn import matmul_rate
from fewstep.families import FAMILIES
from fewstep.lora.layers import LoraLayers, initial, target_shapes
from fewstep.models.load import speed_up
from fewstep.models.network import UNetNetwork
from fewstep.models.text import sizes_of
from fewstep.training.losses import lcd_loss, pseudo_huber
from fewstep.training.meter import stand_ins
from fewstep.training.networks import LoraStudent, SwitchedNetwork, frozen_network

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
    """Precision of the arithmetic."""
    frozen_weights: Literal["auto", "fp32", "bf16", "int8", "nf4"] = "auto"
    """How fewstep keeps the frozen weights, as distill --frozen-weights."""
    rounds: int = 3
    """Turns of each. A turn is a fresh process with one step that does not count and one that is measured."""
    counted: bool = False
    """Compute nothing, and only count the bytes of tensors and the operations of a step, on stand-ins for tensors: for
    sizes that this machine has no memory for, and precisions that it has no instructions for."""
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
    options = build(
        DistillConfig, model="", data="", out="", precision=config.dtype, frozen_weights=config.frozen_weights
    )
    unet = frozen_network(new_unet(config), options, own=True)
    speed_up(unet)
    network, layers = UNetNetwork(unet), LoraLayers(unet)
    layers.add("student", initial(target_shapes(unet), config.rank, 0), trainable=True)
    student, teacher = LoraStudent(network, layers, ("student", 1.0), options), SwitchedNetwork(network, layers)
    target = SwitchedNetwork(network, layers, ("student", 1.0))
    _, _, text, empty = inputs(config)
    guided = GuidedDenoiser(teacher, prediction_named("epsilon"), text, empty, 8.5)

    def step() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=config.dtype == "bf16"):
            loss = loss_of(student, target, guided, config)
        loss.backward(inputs=list(layers.parameters()))
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


class Turn(NamedTuple):
    """A turn of one arrangement."""

    seconds: float  # of a step
    peak_gib: float  # largest resident memory of the process
    flops: int  # of a step


def turn(arrangement: Callable[[DistillStepConfig], LossStep], config: DistillStepConfig) -> Turn:
    """A turn in this process: a step that does not count, whose operations are counted, and one that is measured."""
    step = arrangement(config)
    with FlopCounterMode(display=False) as counter:
        step()
    begun = time.perf_counter()
    step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return Turn(time.perf_counter() - begun, peak, counter.get_total_flops())


def counted_gib(arrangement: Callable[[DistillStepConfig], LossStep], config: DistillStepConfig) -> float:
    """The most memory of a step's tensors, counted on stand-ins."""
    with stand_ins() as meter:
        step = arrangement(config)
        meter.peak = meter.live
        step()
    return meter.peak / 2**30


def count(config: DistillStepConfig) -> None:
    """Print the memory of both arrangements, counted."""
    own, published = (counted_gib(one, config) for one in (our_step, published_step))
    print(f"{config.family}, {config.size} px, rank {config.rank}, {config.dtype}: tensors of a step take", end=" ")
    print(f"{own:.2f} GiB in fewstep, {published:.2f} GiB in the published arrangement: {own / published:.2f} of it")


def run(config: DistillStepConfig) -> None:
    """Print the table: seconds, ratio, floor and memory."""
    if config.counted:
        count(config)
        return
    arrangements = {"fewstep": our_step} | ({} if config.alone else {"published script's": published_step})
    rounds = [[in_own_process(turn, one, config) for one in arrangements.values()] for _ in range(config.rounds)]
    rate = in_own_process(matmul_rate, torch.bfloat16 if config.dtype == "bf16" else torch.float32, torch.device("cpu"))
    flops = rounds[0][0].flops
    floor = flops / rate
    print(f"{config.family}, {config.size} px, batch 1, rank {config.rank}, {config.dtype},", end=" ")
    print(f"{torch.get_num_threads()} threads, {' '.join(instructions())}\n")
    print("| arrangement | s a step | / floor | peak GiB |\n|---|---|---|---|")
    for name, turns in zip(arrangements, zip(*rounds, strict=True), strict=True):
        took = median(one.seconds for one in turns)
        print(f"| {name} | {took:.2f} | {took / floor:.2f} | {max(one.peak_gib for one in turns):.1f} |")
    print(f"| floor, {flops / 1e12:.2f} TFLOP at {rate / 1e12:.2f} TFLOP/s | {floor:.2f} | 1.00 | |")
    if not config.alone:
        faster = median(other.seconds / own.seconds for own, other in rounds)
        print(f"\nimages/s, fewstep / published: {faster:.2f}", end="; ")
        print(f"peak memory, fewstep / published: {rounds[0][0].peak_gib / rounds[0][1].peak_gib:.2f}")


if __name__ == "__main__":
    sys.exit(main_of(DistillStepConfig, run))
