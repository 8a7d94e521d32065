"""Training checkpoints. Each is one safetensors file, written whole or not at all. Nothing is pickled."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewstep.errors import FewstepError, option
from fewstep.events import doing
from fewstep.io import atomic_path
from fewstep.training.players import Players, Trainable

FOLDER = "checkpoints"  # in a run's folder
Optimizers = Mapping[str, torch.optim.Optimizer]  # player -> its optimiser


@doing("writing a checkpoint")
def save_checkpoint(path: Path, players: Players, optimizers: Optimizers, step: int, extra: Mapping[str, Any]) -> None:
    """Write everything a resumed run needs, after `step` finished steps, to `path`.

    extra: more values, which JSON can hold (for example the loss scaler's state).
    """
    tensors = {
        prefix + key: x.detach().cpu().contiguous().clone()
        for name, prefix in prefixes(players).items()
        for key, x in state_of(players[name].trainable, optimizers[name]).items()
    }
    metadata = {"step": str(step), "extra": json.dumps(dict(extra)), "players": json.dumps(list(players))}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata)


def prefixes(players: Players) -> dict[str, str]:
    """Player -> prefix of its tensors' names. The prefix is empty when there is only one player."""
    return {name: f"{name}/" if len(players) > 1 else "" for name in players}


def state_of(trainable: Trainable, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of one player: its parameters, their averages, and its optimiser's state."""
    tensors: dict[str, Tensor] = {f"parameter/{name}": p for name, p in trainable.parameters.items()}
    for key, average in trainable.averages.items():
        tensors |= {f"average/{key}/{name}": x for name, x in average.shadow.items()}
    for name, parameter in trainable.parameters.items():
        tensors |= {f"optimizer/{key}/{name}": torch.as_tensor(x) for key, x in optimizer.state[parameter].items()}
    return tensors


@doing("reading the checkpoint")
def load_checkpoint(path: Path, players: Players, optimizers: Optimizers) -> tuple[int, dict[str, Any]]:
    """Load the checkpoint in `path` into the players and optimisers. Returns its finished steps and `extra`."""
    hint = f"it belongs to another run or was damaged: train into a new {option('out')} folder"
    try:
        with safe_open(path, "pt") as file, torch.no_grad():
            metadata = file.metadata() or {}
            check_players(path, metadata, players, hint)
            for name, prefix in prefixes(players).items():
                keys = [key.removeprefix(prefix) for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
                read = partial(tensor_of, file, prefix)
                load_state(players[name].trainable, optimizers[name], keys, read)
        return int(metadata["step"]), json.loads(metadata["extra"])
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise FewstepError(f"cannot resume from {path}: {error}", hint) from error


def tensor_of(file: Any, prefix: str, key: str) -> Tensor:
    """The tensor that the player with this prefix calls `key`."""
    found: Tensor = file.get_tensor(prefix + key)
    return found


def check_players(path: Path, metadata: Mapping[str, str], players: Players, hint: str) -> None:
    """Raise FewstepError for the checkpoint of a run with other players.

    A checkpoint without names of players fits any run with one player.
    """
    held = json.loads(metadata["players"]) if "players" in metadata else None
    if held is None and len(players) == 1:
        return
    if held is None or set(held) != set(players):
        of = "one player" if held is None else ", ".join(held)
        raise FewstepError(f"cannot resume from {path}: it is of {of}, but this run trains {', '.join(players)}", hint)


def load_state(
    trainable: Trainable, optimizer: torch.optim.Optimizer, keys: Iterable[str], tensor: Callable[[str], Tensor]
) -> None:
    """Copy the tensors of `state_of` into the player and its optimiser. tensor: reads one of the keys."""
    states: dict[str, dict[str, Tensor]] = {}
    for key in keys:
        kind, _, rest = key.partition("/")
        if kind == "optimizer":
            what, _, name = rest.partition("/")
            states.setdefault(name, {})[what] = tensor(key)
    for name, parameter in trainable.parameters.items():
        parameter.copy_(tensor(f"parameter/{name}"))
        optimizer.state[parameter] = {
            key: x.to(parameter.device if key != "step" else "cpu") for key, x in states.get(name, {}).items()
        }
    for key, average in trainable.averages.items():
        for name, shadow in average.shadow.items():
            shadow.copy_(tensor(f"average/{key}/{name}"))


def resumed(
    paths: Sequence[Path], players: Players, optimizers: Optimizers, note: Callable[[str], object]
) -> tuple[int, dict[str, Any]] | None:
    """Load the first of these checkpoints that can be read, like `load_checkpoint`. Returns None when there is none.

    note: called for each earlier one that cannot be read. Raises FewstepError when no checkpoint can be read.
    """
    failures: list[FewstepError] = []
    for path in paths:
        try:
            found = load_checkpoint(path, players, optimizers)
        except FewstepError as error:
            failures.append(error)
            continue
        for failure in failures:
            note(f"{failure.message.marked}; going on from {path.name}, the one before it")
        return found
    if failures:
        raise failures[0]
    return None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`. The one with the most steps comes first."""
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most steps in `folder`, or None."""
    return next(iter(checkpoints(folder)), None)


def checkpoint_path(folder: Path, step: int) -> Path:
    """The path of the checkpoint after `step` steps."""
    return folder / f"step-{step:08d}.safetensors"


def keep_newest(folder: Path, count: int, step: int) -> None:
    """Keep the `count` newest checkpoints of up to `step` steps. Remove the others, and later ones (unreadable)."""
    path = checkpoint_path(folder, step)
    later = [other for other in checkpoints(folder) if other.name > path.name]
    for other in [*later, *checkpoints(folder)[len(later) + count :]]:
        other.unlink()
