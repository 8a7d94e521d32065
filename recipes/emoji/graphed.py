"""A training step, compiled and replayed as one CUDA graph, for a small network whose GPU waits for the CPU.

On one H100 the teacher's step of 1,024 drawings keeps the GPU busy for 37 ms and the CPU, which launches its 2,000
kernels, for 69; as one graph it takes 41.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, Self, cast

import torch
from torch import Tensor, nn

from fewstep.configs import TrainingConfig
from fewstep.errors import FewstepError, UsageError
from fewstep.training.checkpoint import newest_checkpoint
from fewstep.training.loop import Data, Run
from fewstep.training.players import Loss
from fewstep.training.rates import learning_rate

WARM_UP = 3  # calls before the capture, which compile the step and choose its kernels


class TensorBatch(Protocol):
    """A batch that is nothing but tensors on one device, of the same shapes every time."""

    def to(self, device: torch.device) -> Self: ...

    def tensors(self) -> list[Tensor]: ...


def check_graph(config: TrainingConfig) -> None:
    """Raise UsageError when a step of `config` cannot be one graph."""
    if not torch.cuda.is_available():
        raise UsageError("--graph needs an NVIDIA GPU", "leave it out")
    if config.accumulate > 1 or config.precision == "fp16":
        raise UsageError("--graph takes neither --accumulate nor --precision fp16", "use --precision bf16")


class GraphedStep:
    """The step of a loop of one player, captured at its first call.

    Loss and gradient norm are reported one step late, so that nothing waits for them.
    """

    def __init__(self) -> None:
        self.graph: torch.cuda.CUDAGraph | None = None
        self.copying = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.values: list[Tensor] = []  # loss and gradient norm of the step before

    def __call__(self, run: Run, data: Data) -> dict[str, float]:
        if self.graph is None:
            self.coming: TensorBatch = self.fetch(run, data)
            self.batch = self.coming.to(run.accelerator.device)
            self.rate = torch.zeros((), device=run.accelerator.device)
            [(name, player)] = run.players.items()
            compiled = cast(nn.Module, torch.compile(run.prepared[name][0]))
            parameters = list(player.trainable.parameters.values())
            gradients = self.work(run, compiled, parameters, player.loss)
            self.graph, self.results = captured(run.optimizers[name], self.rate, gradients)
        rate = learning_rate(run.config, run.step)
        self.rate.fill_(rate)
        self.take(self.coming)
        self.graph.replay()
        now = [x.clone() for x in self.results]
        if run.step + 1 < run.config.train_steps:
            self.coming = self.fetch(replace(run, step=run.step + 1), data)
        value, norm = (float(x) for x in self.values or now)
        self.values = now
        if not math.isfinite(value + norm):
            raise FewstepError(
                f"the loss is no longer finite at step {run.step}; the last state kept is "
                f"{newest_checkpoint(run.folder)}",
                "lower --learning-rate and run again with --resume",
            )
        return {"loss": value, "gradient_norm": norm, "learning_rate": rate}

    def fetch(self, run: Run, data: Data) -> Any:
        """The batch of the run's next step, copied to the GPU while it computes."""
        with torch.cuda.stream(self.copying):
            return data.batch(run.visits(0), run.accelerator.device)

    def take(self, batch: TensorBatch) -> None:
        """Copy `batch` into the tensors that the graph reads."""
        stream = torch.cuda.current_stream()
        stream.wait_stream(self.copying)
        for old, new in zip(self.batch.tensors(), batch.tensors(), strict=True):
            old.copy_(new)
            new.record_stream(stream)

    def work(
        self, run: Run, module: nn.Module, parameters: list[nn.Parameter], loss: Loss
    ) -> Callable[[], list[Tensor]]:
        """A function that leaves the gradients of self.batch's loss in the parameters; loss and gradient norm."""

        def gradients() -> list[Tensor]:
            for parameter in parameters:
                parameter.grad = None
            with run.accelerator.autocast():
                value = loss(module, self.batch, 0)
            value.backward()  # type: ignore[no-untyped-call]
            return [value.detach(), nn.utils.clip_grad_norm_(parameters, run.config.gradient_clip or math.inf)]

        return gradients


def captured(
    optimizer: torch.optim.Optimizer, rate: Tensor, gradients: Callable[[], list[Tensor]]
) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    """A graph of one step at learning rate `rate` (), and where it leaves loss and gradient norm; nothing is learnt."""
    for group in optimizer.param_groups:
        group |= {"lr": rate, "fused": True, "capturable": True}
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            gradients()
        if not optimizer.state:
            optimizer.step()  # at rate 0: makes the moments, which must not lie in the graph's memory
            for state in optimizer.state.values():
                for x in state.values():
                    x.zero_()
    torch.cuda.current_stream().wait_stream(stream)
    for state in optimizer.state.values():  # a checkpoint's count of steps is on the CPU
        state["step"] = state["step"].to(rate.device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = gradients()
        optimizer.step()
    return graph, results
