"""What a run will need, before any weight is read: memory, disk, time.

The run's own code takes one step with stand-ins for tensors (see Meter). Shapes come from configs and from the headers
of weight files.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fewstep.configs import AdapterConfig
from fewstep.data.cache.batches import at_once
from fewstep.diffusion.guidance import Conditioning
from fewstep.models.load import DTYPES, load_model, pick_device
from fewstep.models.model import Model
from fewstep.models.network import takes_text
from fewstep.models.parts import weight_files
from fewstep.models.quiet import quiet
from fewstep.training.adapt import Batch, training_size
from fewstep.training.frozen import loading_dtype
from fewstep.training.meter import Meter, stand_ins
from fewstep.training.methods import Method
from fewstep.training.networks import networks_of
from fewstep.training.players import Player

IMPORTS = 150 * 2**20  # bytes of what a run imports later than a plan does
SLACK = 1.04  # memory of the process over that of its tensors: what the allocator keeps, and scratch of operations
STATE_BYTES = {"adamw": 8.0, "adamw-8bit": 2.07}  # of the optimiser, for each trained value
CALL_S = 8e-6  # of Python and torch, for each operation besides its own time


class Forecast(NamedTuple):
    """What a run will need."""

    memory: dict[str, int]  # phase of the run -> the most bytes then
    disk: dict[str, int]  # what is written -> its bytes
    trained: int  # number of trained values
    flops: int  # of an optimiser step
    step_s: float | None  # seconds of an optimiser step; None = not measured

    @property
    def peak(self) -> int:
        """The most memory, in bytes."""
        return max(self.memory.values())


class TracedStep(NamedTuple):
    """A step on stand-ins."""

    meter: Meter  # of the step
    peak: int  # bytes, also of the networks' making
    held: int  # bytes between steps
    trained: int
    averaged: int  # values of averages
    flops: int


def forecast(config: AdapterConfig, kind: type[Method], samples: int, probe_s: float | None = None) -> Forecast:
    """The forecast of a run with a method of this class on so many images.

    probe_s: how long the step's operations may be timed on this machine; None = not at all.
    """
    base = resident_bytes()
    model = load_model(config.model, device="meta", safety=False)
    method, device = kind(model, config), pick_device(config.device)
    step = traced_step(method, device)
    state = int(step.trained * STATE_BYTES[config.optimizer])
    saved = 4 * (step.trained + step.averaged) + state
    weights = weights_bytes(model, config)
    encoders = sum(size for part, size in weights.items() if part != "unet")
    idle = encoders if config.full and model.path.is_file() else 0  # a single file is written again from its parts
    memory = {
        "encoding": sum(weights.values()) + encoding_bytes(model, training_size(model, config)),
        "training": idle + step.peak + state,
    }
    if device.type == "cpu":
        memory |= {"loading": loading_bytes(model.path, weights)}
        memory |= {"checkpoints": idle + step.held + state + saved}  # a checkpoint is copied before it is written
        memory = {phase: int(base + IMPORTS + SLACK * size) for phase, size in memory.items()}
    seconds = None if probe_s is None else config.accumulate * probed(step.meter, probe_s)
    return Forecast(memory, disk_bytes(method, samples, saved, step.trained), step.trained, step.flops, seconds)


@quiet()
def traced_step(method: Method, device: torch.device) -> TracedStep:
    """One step of the method's players on stand-ins on this device."""
    config, model = method.config, method.model
    with stand_ins() as meter:
        with device:
            unet = type(model.unet).from_config(model.unet.config).to(loading_dtype(config)).eval()
        meter.peak = meter.live  # a run reads it in this type
        unmade = config.model_copy(update={"init_lora": None})  # its values do not matter here
        with networks_of(replace(model, unet=unet), unmade, method.with_teacher, own=True) as networks:
            players = method.players(networks)
            made, meter.calls = meter.peak, 0
            meter.counts.clear()
            with FlopCounterMode(display=False) as counter:
                for player in players.values():
                    take_step(player, batch_of(model, config, device), config, device)
            parameters = [p for player in players.values() for p in player.trainable.parameters.values()]
            averages = [x for p in players.values() for a in p.trainable.averages.values() for x in a.shadow.values()]
            held = meter.live - sum(p.nbytes for p in parameters)  # without gradients
    trained, averaged = (sum(x.numel() for x in some) for some in (parameters, averages))
    return TracedStep(
        meter, max(made, meter.peak), held, trained, averaged, config.accumulate * counter.get_total_flops()
    )


def take_step(player: Player, batch: Batch, config: AdapterConfig, device: torch.device) -> None:
    """Compute the gradients of a player, as the loop does."""
    with torch.autocast(device.type, DTYPES[config.precision], enabled=config.precision != "fp32"):
        loss = player.loss(player.trainable.module, batch, 0)
    loss.backward(inputs=list(player.trainable.parameters.values()))  # type: ignore[no-untyped-call]


def batch_of(model: Model, config: AdapterConfig, device: torch.device) -> Batch:
    """A batch of the run's shapes."""
    rows, size = config.batch_size, training_size(model, config)
    with device:
        x_0 = torch.randn(rows, *model.latent_shape(size, size))
        conditioning = conditioning_of(model, rows, x_0)
    return Batch(x_0, conditioning, conditioning, torch.randn_like(x_0), *(torch.rand(rows) for _ in range(3)))


def conditioning_of(model: Model, rows: int, x_0: Tensor) -> Conditioning:
    """The conditioning of a batch x_0 (rows, C, H, W), on its device."""
    if not takes_text(model.unet):
        return Conditioning(torch.zeros(rows, 0, 0))
    text = torch.randn(rows, model.tokenizer.model_max_length, model.unet.config.cross_attention_dim)
    conditioning = Conditioning(text)
    if model.text_encoder_2 is not None:
        pooled = torch.randn(rows, model.text_encoder_2.config.projection_dim)
        conditioning = conditioning._replace(pooled=pooled, sizes=torch.zeros(rows, 6))
    if model.inpaints:
        conditioning = conditioning._replace(mask_and_latents=torch.zeros(rows, 1 + x_0.shape[1], *x_0.shape[2:]))
    return conditioning


def weights_bytes(model: Model, config: AdapterConfig) -> dict[str, int]:
    """Part of the model -> bytes of its weights as they are read."""
    unet = numel(model.unet) * loading_dtype(config).itemsize
    others = {name: getattr(model, name) for name in ("vae", "text_encoder", "text_encoder_2")}
    return {"unet": unet} | {name: 4 * numel(part) for name, part in others.items() if part is not None}


def loading_bytes(path: Path, weights: Mapping[str, int]) -> int:
    """The most bytes while a model is read. The file of a part is in memory while its weights are converted.

    weights: part -> bytes of its weights, in the order in which they are read.
    """
    if path.is_file():
        return sum(weights.values()) + path.stat().st_size
    read = most = 0
    for part, size in weights.items():
        files = weight_files(path / part if (path / part).is_dir() else path)
        read += size
        most = max(most, read + max(file.stat().st_size for file in files))
    return most


def result_bytes(model: Model, config: AdapterConfig, trained: int) -> int:
    """The bytes of the result, in half precision: a LoRA, or a model folder."""
    if not config.full:
        return 2 * trained
    if model.path.is_file():
        return model.path.stat().st_size
    others = (file for file in model.path.rglob("*") if file.is_file() and "unet" not in file.parts)
    return 2 * numel(model.unet) + sum(file.stat().st_size for file in others)


def numel(network: nn.Module) -> int:
    """The number of values of a network."""
    return sum(x.numel() for x in network.parameters())


@quiet()
def encoding_bytes(model: Model, size: int) -> int:
    """The bytes that the autoencoder needs besides its weights, for a batch of pictures of size x size pixels."""
    if model.vae is None:
        return 0
    with stand_ins() as meter, torch.no_grad():
        vae = type(model.vae).from_config(model.vae.config)
        before = meter.peak = meter.live
        vae.encode(torch.zeros(at_once((size, size)), 3, size, size).contiguous(memory_format=torch.channels_last))
    return meter.peak - before


def disk_bytes(method: Method, samples: int, saved: int, trained: int) -> dict[str, int]:
    """What is written -> its bytes. saved: of a checkpoint."""
    model, config = method.model, method.config
    size, row = training_size(model, config), 0
    if model.vae is not None:
        views = max(config.random_crops, 1) * (1 + config.random_flip)
        row = 2 * math.prod(model.latent_shape(size, size)) * views * (1 + config.sample_latents)
    if takes_text(model.unet):
        conditioning = conditioning_of(model, 1, torch.zeros(1, *model.latent_shape(size, size)))
        row += 2 * sum(part.numel() for part in conditioning if part is not None)
    return {
        "cache": samples * row,
        "checkpoints": config.keep_checkpoints * saved,
        "result": result_bytes(model, config, trained),
    }


def probed(meter: Meter, budget_s: float) -> float:
    """The seconds of all operations that the meter counted, from the time of some of each kind on this machine.

    Those with the most values are timed first. When no time is left, others take as long for each value as those of the
    same function that were timed, or as all that were.
    """
    begun, overall = time.perf_counter(), Rate()
    rates: dict[object, Rate] = {}
    rest: list[tuple[object, int]] = []
    for words in sorted(meter.counts, key=lambda w: -meter.counts[w] * meter.operations[w].values):
        operation = meter.operations[words]
        function, values = operation.function, meter.counts[words] * operation.values
        if time.perf_counter() - begun > budget_s:
            rest.append((function, values))
            continue
        seconds = meter.counts[words] * operation.seconds()
        for rate in (overall, rates.setdefault(function, Rate())):
            rate.add(seconds, values)
    others = sum(values * rates.get(function, overall).per_value for function, values in rest)
    return overall.seconds + others + CALL_S * meter.calls


@dataclass
class Rate:
    """Seconds of operations, and the values of their tensors."""

    seconds: float = 0.0
    values: int = 0

    def add(self, seconds: float, values: int) -> None:
        """Count an operation."""
        self.seconds += seconds
        self.values += values

    @property
    def per_value(self) -> float:
        """Seconds for each value."""
        return self.seconds / max(self.values, 1)


def resident_bytes() -> int:
    """The memory of this process, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        return 500 * 2**20
