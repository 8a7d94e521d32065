"""The one training loop: every recipe, loss and model goes through `loop(trainable, loss, data, config)`."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from fewstep.configs import TrainingConfig
from fewstep.errors import FewstepError, Interrupted, UsageError
from fewstep.events import note
from fewstep.training.checkpoint import (
    Trainable,
    checkpoint_path,
    keep_newest,
    resumed,
    save_checkpoint,
)
from fewstep.training.draws import Order, SampleId
from fewstep.training.progress import TrainingProgress, check_same_run, only_run, stop_requests, write_config

Loss = Callable[[nn.Module, Any], Tensor]  # the module (wrapped for several processes), a batch -> mean loss


class Data(Protocol):
    """Samples by visit; a batch depends on its visits alone."""

    def __len__(self) -> int: ...

    def batch(self, visits: Sequence[SampleId], device: torch.device) -> Any:
        """The batch of these visits, on `device`."""


@dataclass
class Run:
    """The state of a loop in progress."""

    trainable: Trainable
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    config: TrainingConfig
    step: int = 0  # finished ones

    @property
    def folder(self) -> Path:
        return self.config.out / "checkpoints"

    def save(self) -> Path:
        """A checkpoint of the present state, written by the main process."""
        path = checkpoint_path(self.folder, self.step)
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            extra = {"scaler": scaler.state_dict() if scaler is not None else None}
            save_checkpoint(path, self.trainable, self.optimizer, self.step, extra)
            keep_newest(self.folder, 2, self.step)
        return path

    def resume(self) -> None:
        """Continue from the newest checkpoint that can be read, if there is one."""
        found = resumed(self.folder, self.trainable, self.optimizer, self.note)
        if found is not None:
            self.step, extra = found
            if self.accelerator.scaler is not None and extra.get("scaler"):
                self.accelerator.scaler.load_state_dict(extra["scaler"])

    def note(self, text: str) -> None:
        """Tell something on stderr, once for all processes."""
        if self.accelerator.is_main_process:
            note(text)

    def visits(self, samples: int, part: int) -> list[SampleId]:
        """This process's share of accumulation part `part` of the next step's global batch."""
        size, processes = self.config.batch_size, self.accelerator.num_processes
        place = ((self.step * self.config.accumulate + part) * processes + self.accelerator.process_index) * size
        return Order(samples, self.config.seed).visits(place, size)


Step = Callable[[Run, nn.Module, Any, Loss, Data], dict[str, float]]  # see train_step


def loop(
    trainable: Trainable,
    loss: Loss,
    data: Data,
    config: TrainingConfig,
    on_checkpoint: Callable[[int], None] = lambda step: None,
    one_step: Step | None = None,
) -> None:
    """Train `trainable` in place until config.train_steps steps are finished.

    Writes config.json, metrics.jsonl and checkpoints/ under config.out.
    on_checkpoint: called, in the main process, with the finished steps whenever a checkpoint was written.
    one_step: how a step is taken instead of by train_step.

    Raises Interrupted after saving a checkpoint on Ctrl-C or a termination signal, and FewstepError when
    the loss is no longer finite: the last good state is then saved, and named.
    """
    accelerator = new_accelerator(config)
    with only_run(config) if accelerator.is_main_process else nullcontext():
        check_same_run(config)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_config(config)
        run_until_the_end(trainable, loss, data, config, accelerator, on_checkpoint, one_step or train_step)


def run_until_the_end(
    trainable: Trainable,
    loss: Loss,
    data: Data,
    config: TrainingConfig,
    accelerator: Accelerator,
    on_checkpoint: Callable[[int], None],
    one_step: Step,
) -> None:
    """The steps of `loop`, from the newest checkpoint on with config.resume."""
    run = Run(trainable, new_optimizer(trainable, config, accelerator.device), accelerator, config)
    module, optimizer = accelerator.prepare(trainable.module, run.optimizer)
    for average in trainable.averages.values():
        for shadow in average.shadow.values():
            shadow.data = shadow.data.to(accelerator.device)
    if config.resume:
        run.resume()
        if run.step >= config.train_steps and accelerator.is_main_process:
            on_checkpoint(run.step)  # a run stopped between its last checkpoint and its export
    with stop_requests(accelerator) as stopped, TrainingProgress(config, run.step, accelerator) as progress:
        while run.step < config.train_steps:
            values = one_step(run, module, optimizer, loss, data)
            run.step += 1
            for average in trainable.averages.values():
                average.update(trainable.parameters, run.step)
            progress.record(run.step, values)
            stop = stopped()
            if stop or run.step % config.checkpoint_every == 0 or run.step == config.train_steps:
                run.save()
                if accelerator.is_main_process:
                    on_checkpoint(run.step)
            if stop and run.step < config.train_steps:
                raise Interrupted(
                    f"stopped after {run.step} of {config.train_steps} steps, with a checkpoint in {run.folder}",
                    "run the same command with --resume to go on",
                )


def new_accelerator(config: TrainingConfig) -> Accelerator:
    """Accelerate's view of this machine: device, precision, processes, trackers."""
    on_cpu = config.device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if config.precision == "fp16" and on_cpu:
        raise UsageError("--precision fp16 needs a GPU to train", "use --precision bf16, or fp32")
    AcceleratorState._reset_state()  # a second run in one process may want another precision
    return Accelerator(
        cpu=config.device == "cpu",
        mixed_precision={"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[config.precision],
        gradient_accumulation_steps=config.accumulate,
        log_with=config.tracker,
        project_dir=str(config.out),
    )


def new_optimizer(trainable: Trainable, config: TrainingConfig, device: torch.device) -> torch.optim.Optimizer:
    """AdamW over the trained parameters, on a CPU in one pass over them."""
    return torch.optim.AdamW(
        list(trainable.parameters.values()),
        lr=config.learning_rate,
        betas=(0.9, config.beta2),
        weight_decay=config.weight_decay,
        fused=device.type == "cpu",
    )


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The rate of step number `step`: linear warm-up, then constant or a half cosine down to zero."""
    rate = config.learning_rate * min(1.0, (step + 1) / max(config.warmup, 1))
    if config.decay == "constant":
        return rate
    done = max(step - config.warmup, 0) / max(config.train_steps - config.warmup, 1)
    return rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def train_step(run: Run, module: nn.Module, optimizer: Any, loss: Loss, data: Data) -> dict[str, float]:
    """One optimiser step over a global batch: its loss, gradient norm and learning rate."""
    config, accelerator = run.config, run.accelerator
    rate = learning_rate(config, run.step)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    total, norm = 0.0, torch.zeros(())
    for part in range(config.accumulate):
        batch = data.batch(run.visits(len(data), part), accelerator.device)
        with accelerator.accumulate(module):
            with accelerator.autocast():
                value = loss(module, batch)
            accelerator.backward(value)
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(
                    list(run.trainable.parameters.values()), config.gradient_clip or math.inf
                )
                check_finite(run, value, norm)
                optimizer.step()
            optimizer.zero_grad()
        total += float(value.detach()) / config.accumulate
    return {"loss": total, "gradient_norm": float(norm), "learning_rate": rate}


def check_finite(run: Run, loss: Tensor, norm: Tensor) -> None:
    """Stop before a step that would spoil the weights; fp16's loss scaler may skip steps of its own."""
    scaled = run.accelerator.scaler is not None
    if torch.isfinite(loss) and (scaled or torch.isfinite(norm)):
        return
    saved = run.save()
    raise FewstepError(
        f"the loss is no longer finite at step {run.step + 1}; the last good state is {saved}",
        "lower --learning-rate or use --precision fp32, and run again with --resume",
    )
