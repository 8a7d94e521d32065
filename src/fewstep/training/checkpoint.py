"""Training checkpoints: one safetensors file each, whole or not at all, nothing to unpickle."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.events import doing
from fewstep.io import atomic_path


class Average(NamedTuple):
    """An exponential moving average that follows the trained parameters (eq. theta- of LCM's Algorithm 1).

    A LoRA's parameters are A and B, and each is averaged by itself: the product of the two averages is not the average
    of the products B A.
    """

    decay: float  # 0 copies; near 1 is slow
    shadow: dict[str, Tensor]  # same names and shapes as the parameters; updated in place
    warm_up: bool = False  # whether the decay starts low and rises as (1 + step) / (10 + step)

    def update(self, parameters: Mapping[str, Tensor], step: int) -> None:
        """shadow <- decay shadow + (1 - decay) parameter, after step number `step`."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warm_up else self.decay
        names = list(self.shadow)
        with torch.no_grad():
            torch._foreach_lerp_([self.shadow[n] for n in names], [parameters[n].detach() for n in names], 1 - decay)


class Trainable(NamedTuple):
    """What a loop trains."""

    module: nn.Module  # what the loss is computed through
    parameters: dict[str, nn.Parameter]  # the trained ones, by name
    averages: dict[str, Average]  # by name: "export", "target", ...


def average_of(parameters: Mapping[str, Tensor], decay: float, warm_up: bool = True) -> Average:
    """An average starting at a copy of the parameters."""
    return Average(decay, {name: p.detach().clone() for name, p in parameters.items()}, warm_up)


@doing("writing a checkpoint")
def save_checkpoint(
    path: Path, trainable: Trainable, optimizer: torch.optim.Optimizer, step: int, extra: Mapping[str, Any]
) -> None:
    """Write everything a resumed run needs, after `step` finished steps, to `path`.

    extra: JSON-able values kept beside the tensors (the loss scaler's state, say).
    """
    tensors: dict[str, Tensor] = {f"parameter/{name}": p for name, p in trainable.parameters.items()}
    for key, average in trainable.averages.items():
        tensors |= {f"average/{key}/{name}": x for name, x in average.shadow.items()}
    for name, parameter in trainable.parameters.items():
        tensors |= {f"optimizer/{key}/{name}": torch.as_tensor(x) for key, x in optimizer.state[parameter].items()}
    tensors = {key: x.detach().cpu().contiguous().clone() for key, x in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {"step": str(step), "extra": json.dumps(dict(extra))})


@doing("reading the checkpoint")
def load_checkpoint(path: Path, trainable: Trainable, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, Any]]:
    """The finished steps and `extra` of the checkpoint in `path`, its tensors copied into place."""
    hint = "it belongs to another run or was damaged: train into a new --out folder"
    try:
        with safe_open(path, "pt") as file, torch.no_grad():
            metadata, keys = file.metadata() or {}, set(file.keys())
            for name, parameter in trainable.parameters.items():
                parameter.copy_(file.get_tensor(f"parameter/{name}"))
                fields = {
                    key.split("/")[1] for key in keys if key.startswith("optimizer/") and key.endswith(f"/{name}")
                }
                optimizer.state[parameter] = {
                    key: file.get_tensor(f"optimizer/{key}/{name}").to(parameter.device if key != "step" else "cpu")
                    for key in fields
                }
            for key, average in trainable.averages.items():
                for name, shadow in average.shadow.items():
                    shadow.copy_(file.get_tensor(f"average/{key}/{name}"))
        return int(metadata["step"]), json.loads(metadata["extra"])
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise FewstepError(f"cannot resume from {path}: {error}", hint) from error


def resumed(
    folder: Path, trainable: Trainable, optimizer: torch.optim.Optimizer, note: Callable[[str], object]
) -> tuple[int, dict[str, Any]] | None:
    """What `load_checkpoint` gives of the newest checkpoint in `folder` that can be read; None where there is none.

    note: told of each newer one that cannot. Raises FewstepError when none can.
    """
    failures: list[FewstepError] = []
    for path in checkpoints(folder):
        try:
            found = load_checkpoint(path, trainable, optimizer)
        except FewstepError as error:
            failures.append(error)
            continue
        for failure in failures:
            note(f"{failure.message}; going on from {path.name}, the one before it")
        return found
    if failures:
        raise failures[0]
    return None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, the one with the most steps first."""
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most steps in `folder`, or None."""
    return next(iter(checkpoints(folder)), None)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return folder / f"step-{step:08d}.safetensors"


def keep_newest(folder: Path, count: int, step: int) -> None:
    """Remove all but the `count` newest checkpoints of up to `step` steps; later ones could not be read."""
    path = checkpoint_path(folder, step)
    later = [other for other in checkpoints(folder) if other.name > path.name]
    for other in [*later, *checkpoints(folder)[len(later) + count :]]:
        other.unlink()
