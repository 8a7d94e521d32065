"""The one training loop, `loop(players, data, config)`, for every method, loss and model."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fewstep.configs import TrainingConfig
from fewstep.errors import FewstepError, Interrupted, UsageError, number_of, option
from fewstep.events import note
from fewstep.sheets import ScoredSheet
from fewstep.training.checkpoint import FOLDER, checkpoint_path, checkpoints, keep_newest, resumed, save_checkpoint
from fewstep.training.draws import SampleId, StepOrder
from fewstep.training.players import Player, Players, Trainable
from fewstep.training.progress import TrainingProgress, check_same_run, only_run, stop_requests, write_config
from fewstep.training.rates import learning_rate
from fewstep.training.same_run import named_checkpoint


class Data(Protocol):
    """Samples, by visit. A batch depends on its visits alone."""

    def __len__(self) -> int: ...

    def batch(self, visits: Sequence[SampleId], device: torch.device) -> Any:
        """The batch of these visits, on `device`."""


@runtime_checkable
class Described(Data, Protocol):
    """Data that tells what its samples are."""

    @property
    def groups(self) -> Sequence[Tensor]:
        """The indices of the samples of each shape. All samples of a step are of one."""

    @property
    def identity(self) -> str:
        """A hash of what the samples are and of their order."""


@dataclass
class Run:
    """The state of a loop in progress."""

    players: Players
    data: Data
    accelerator: Accelerator
    config: TrainingConfig
    step: int = 0  # number of finished steps
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)  # player -> its optimiser
    prepared: dict[str, tuple[nn.Module, Any]] = field(default_factory=dict)  # player -> wrapped module, optimiser

    def prepare(self) -> None:
        """Make the optimisers, and wrap them and the modules for this machine's precision and processes."""
        if len(self.players) > 1 and self.accelerator.scaler is not None:
            names = ", ".join(self.players)
            raise UsageError(
                f"{option('precision')} fp16 trains only one network, but this run {names}",
                f"use {option('precision')} bf16",
            )
        for name, player in self.players.items():
            trained = player.trainable
            share_only_own(trained)
            made = player.optimizer(list(trained.parameters.values()), self.config, self.accelerator.device)
            self.optimizers[name], self.prepared[name] = made, self.accelerator.prepare(trained.module, made)
            for average in trained.averages.values():
                for shadow in average.shadow.values():
                    shadow.data = shadow.data.to(self.accelerator.device)

    @property
    def due(self) -> dict[str, Player]:
        """The players that take part in the next step."""
        return {name: player for name, player in self.players.items() if player.due(self.step)}

    @property
    def folder(self) -> Path:
        return self.config.out / FOLDER

    def save(self) -> Path:
        """Write a checkpoint of the present state, in the main process. Returns its path.

        When the disk is full, all checkpoints but the newest make room. Raises FewstepError if that is not enough.
        """
        path = checkpoint_path(self.folder, self.step)
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            extra = {"scaler": scaler.state_dict() if scaler is not None else None, "data": self.identity}
            write = partial(save_checkpoint, path, self.players, self.optimizers, self.step, extra)
            try:
                write()
            except FewstepError:
                keep_newest(self.folder, 1, self.step)
                write()
            keep_newest(self.folder, self.config.keep_checkpoints, self.step)
        return path

    def resume(self) -> None:
        """Continue from the newest readable checkpoint, or the one of --resume-from, if there is one."""
        paths = checkpoints(self.folder) if self.config.resume else []
        if not paths and (named := named_checkpoint(self.config)) is not None:
            paths = [named]
        found = resumed(paths, self.players, self.optimizers, self.note)
        if found is None:
            return
        self.step, extra = found
        if self.identity != extra.get("data", self.identity):
            raise UsageError(
                f"the images or captions differ from those of the run that {paths[0]} is of",
                f"give {option('data')} what it was given then, or choose another {option('out')}",
            )
        if self.accelerator.scaler is not None and extra.get("scaler"):
            self.accelerator.scaler.load_state_dict(extra["scaler"])

    def note(self, text: str) -> None:
        """Send a note, once for all processes."""
        if self.accelerator.is_main_process:
            note(text)

    @property
    def identity(self) -> str | None:
        """A hash of what the samples are; None if the data does not tell."""
        return self.data.identity if isinstance(self.data, Described) else None

    @cached_property
    def order(self) -> StepOrder:
        """The order in which samples are visited."""
        size = self.config.batch_size * self.config.accumulate * self.accelerator.num_processes
        groups = self.data.groups if isinstance(self.data, Described) else [torch.arange(len(self.data))]
        return StepOrder(tuple(groups), self.config.seed, size)

    def visits(self, part: int) -> list[SampleId]:
        """This process's visits in accumulation part `part` of the next step's global batch."""
        size = self.config.batch_size
        place = (part * self.accelerator.num_processes + self.accelerator.process_index) * size
        return self.order.visits(self.step, place, size)


def share_only_own(trained: Trainable) -> None:
    """Exclude other players' parameters in the module, so that processes do not wait for their gradients."""
    own = {id(parameter) for parameter in trained.parameters.values()}
    others = [name for name, parameter in trained.module.named_parameters() if id(parameter) not in own]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(trained.module, others)  # type: ignore[no-untyped-call]


Look = Callable[[int], ScoredSheet | None]  # after each step, in the main process; returns a preview if one is due
LoopStep = Callable[[Run, Data], dict[str, float]]  # takes a step, returns values to log; see train_step


def loop(
    players: Players,
    data: Data,
    config: TrainingConfig,
    on_checkpoint: Callable[[int], None] = lambda step: None,
    one_step: LoopStep | None = None,
    look: Look = lambda step: None,
) -> None:
    """Train the players in place, each every `every` steps, until config.train_steps steps are finished.

    Writes config.json, metrics.jsonl and checkpoints/ under config.out.
    on_checkpoint: called in the main process, with the number of finished steps, after each checkpoint is written.
    one_step: takes a step; None = train_step. look: sees the players after each step, and must not change them.

    On Ctrl-C or a termination signal, saves a checkpoint and raises Interrupted. When the loss is no longer finite,
    saves the last good state and raises FewstepError that names it.
    """
    accelerator = new_accelerator(config)
    with only_run(config) if accelerator.is_main_process else nullcontext():
        check_same_run(config)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_config(config)
        run_until_the_end(Run(players, data, accelerator, config), on_checkpoint, one_step or train_step, look)


def run_until_the_end(run: Run, on_checkpoint: Callable[[int], None], one_step: LoopStep, look: Look) -> None:
    """Take the steps of `loop`. With config.resume or config.resume_from, begin at a checkpoint."""
    config, accelerator = run.config, run.accelerator
    run.prepare()
    if config.resume or config.resume_from:
        run.resume()
        if run.step >= config.train_steps and accelerator.is_main_process:
            on_checkpoint(run.step)  # the run was stopped between its last checkpoint and its export
    with stop_requests(accelerator) as stopped, TrainingProgress(config, run.step, accelerator) as progress:
        while run.step < config.train_steps:
            due, values = run.due, one_step(run, run.data)
            run.step += 1
            for player in due.values():
                for average in player.trainable.averages.values():
                    average.update(player.trainable.parameters, run.step // player.every)
            progress.record(run.step, values)
            if accelerator.is_main_process:
                progress.preview(run.step, look)
            stop = stopped()
            if stop or run.step % config.checkpoint_every == 0 or run.step == config.train_steps:
                keep(run, on_checkpoint, at_any_rate=stop or run.step == config.train_steps)
            if stop and run.step < config.train_steps:
                steps = number_of(config.train_steps, "step")
                raise Interrupted(
                    f"stopped after {run.step:,} of {steps}, with a checkpoint in {run.folder}",
                    f"run the same command with {option('resume')} to continue",
                )


def keep(run: Run, on_checkpoint: Callable[[int], None], at_any_rate: bool) -> None:
    """Write a checkpoint and export the result. If that cannot be done, as on a full disk, training goes on.

    at_any_rate: whether FewstepError is raised then, because there is no later time to try again.
    """
    try:
        run.save()
        if run.accelerator.is_main_process:
            on_checkpoint(run.step)
    except FewstepError as error:
        if at_any_rate:
            raise
        pause = number_of(run.config.checkpoint_every, "step")
        note(f"{error.message.marked}; training goes on, and tries again {pause} later")


def new_accelerator(config: TrainingConfig) -> Accelerator:
    """An Accelerator for this machine: device, precision, processes, trackers."""
    check_precision(config)
    check_whole_weights()
    AcceleratorState._reset_state()  # a second run in this process may use another precision
    return Accelerator(
        cpu=config.device == "cpu",
        mixed_precision={"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[config.precision],
        gradient_accumulation_steps=config.accumulate,
        log_with=config.tracker,
        project_dir=str(config.out),
    )


def check_whole_weights() -> None:
    """Raise UsageError if accelerate is told to divide the weights among processes."""
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false") not in ("", "0", "false"):
            raise UsageError(
                f"accelerate is set to {name}, which divides the weights among processes in its own way",
                f"run accelerate config again without it; {option('shard')} divides a LoRA's frozen weights",
            )


def check_precision(config: TrainingConfig) -> None:
    """Raise UsageError for a precision in which this machine cannot train."""
    on_cpu = config.device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if config.precision == "fp16" and on_cpu:
        raise UsageError(f"{option('precision')} fp16 needs a GPU to train", f"use {option('precision')} bf16, or fp32")


def train_step(run: Run, data: Data) -> dict[str, float]:
    """Take one step of the players that are due, over a global batch. Returns their loss, gradient norm, learning rate.

    The names are loss, gradient_norm and learning_rate for the first player, fake/loss and so on for a player `fake`.
    """
    due, rate = run.due, learning_rate(run.config, run.step)
    losses = {name: computed_gradients(run, name, data) for name in due}
    norms = {name: clipped_gradients(run, player) for name, player in due.items()}
    check_finite(run, losses, norms)
    values: dict[str, float] = {}
    first = next(iter(run.players))
    for name, player in due.items():
        for group in run.optimizers[name].param_groups:
            group["lr"] = rate * player.rate
        optimizer = run.prepared[name][1]
        optimizer.step()
        optimizer.zero_grad()
        of_it = {"loss": losses[name], "gradient_norm": float(norms[name]), "learning_rate": rate * player.rate}
        values |= {key if name == first else f"{name}/{key}": value for key, value in of_it.items()}
    return values


def computed_gradients(run: Run, name: str, data: Data) -> float:
    """Compute the gradients of the player's own parameters, and of no others. Returns its loss."""
    player, (module, _), accelerator = run.players[name], run.prepared[name], run.accelerator
    total, parameters = 0.0, list(player.trainable.parameters.values())
    for part in range(run.config.accumulate):
        batch = data.batch(run.visits(part), accelerator.device)
        with accelerator.accumulate(module):
            with accelerator.autocast():
                value = player.loss(module, batch, run.step)
            accelerator.backward(value, inputs=parameters)
        total += float(value.detach()) / run.config.accumulate
    return total


def clipped_gradients(run: Run, player: Player) -> Tensor:
    """Clip the player's gradients. Returns their norm before clipping, a scalar."""
    parameters = list(player.trainable.parameters.values())
    norm: Tensor = run.accelerator.clip_grad_norm_(parameters, run.config.gradient_clip or math.inf)
    return norm


def check_finite(run: Run, losses: Mapping[str, float], norms: Mapping[str, Tensor]) -> None:
    """Raise FewstepError before a step that would spoil the weights. fp16's loss scaler skips such steps itself."""
    scaled = run.accelerator.scaler is not None
    bad = [name for name in losses if not (math.isfinite(losses[name]) and (scaled or torch.isfinite(norms[name])))]
    if not bad:
        return
    saved, of = run.save(), f" of {', '.join(bad)}" if len(run.players) > 1 else ""
    raise FewstepError(
        f"the loss{of} is no longer finite at step {run.step + 1}; the last good state is {saved}",
        f"lower {option('learning_rate')} or use {option('precision')} fp32, and run again with {option('resume')}",
    )
