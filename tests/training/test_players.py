"""Players in one loop: each at its own pace, by its own loss and optimiser; checkpoints hold all of them."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep.configs import TrainingConfig, build
from fewstep.errors import FewstepError
from fewstep.training.checkpoint import load_checkpoint, newest_checkpoint
from fewstep.training.loop import loop
from fewstep.training.players import Player, Trainable, average_of
from tests.training.test_loop import Points, small_net, squared_error

VALUES = {"batch_size": 4, "learning_rate": 0.01, "device": "cpu", "log_every": 1}
Weights = dict[str, Tensor]


def trainable(net: nn.Module) -> Trainable:
    parameters = dict(net.named_parameters())
    return Trainable(net, parameters, {"export": average_of(parameters, 0.9)})


def two(critic_every: int = 1, student_every: int = 2) -> dict[str, Player]:
    """A student whose loss goes through its critic, which learns the data."""
    student, critic = small_net(), nn.Sequential(nn.Linear(2, 2))

    def student_loss(module: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> Tensor:
        return (critic(module(batch[0])) ** 2).mean()

    def critic_loss(module: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> Tensor:
        return ((module(batch[1]) - module(student(batch[0])) - 1) ** 2).mean()

    return {
        "student": Player(trainable(student), student_loss, every=student_every),
        "critic": Player(trainable(critic), critic_loss, every=critic_every, rate=0.1),
    }


def weights(players: dict[str, Player]) -> Weights:
    state = {}
    for name, player in players.items():
        state |= {f"{name}/{key}": x.detach().clone() for key, x in player.trainable.parameters.items()}
        state |= {f"{name} averaged/{key}": x.clone() for key, x in player.trainable.averages["export"].shadow.items()}
    return state


def assert_equal(one: Weights, other: Weights) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def run(out: Path, players: dict[str, Player], **options: object) -> Weights:
    loop(players, Points(), build(TrainingConfig, out=out, **(VALUES | {"train_steps": 6} | options)))
    return weights(players)


def moved(before: Weights, after: Weights, name: str) -> bool:
    return any(not torch.equal(x, after[key]) for key, x in before.items() if key.startswith(f"{name}/"))


def test_each_player_steps_at_its_own_pace(tmp_path: Path) -> None:
    states = [weights(two())]
    states += [run(tmp_path / str(steps), two(), train_steps=steps) for steps in range(1, 5)]
    pairs = list(pairwise(states))
    assert [moved(*pair, "critic") for pair in pairs] == [True, True, True, True]
    assert [moved(*pair, "student") for pair in pairs] == [False, True, False, True]
    lines = [json.loads(line) for line in (tmp_path / "4" / "metrics.jsonl").read_text().splitlines()]
    assert ["loss" in line for line in lines] == [False, True, False, True]
    assert {line["critic/learning_rate"] for line in lines} == {0.1 * 0.01}


def test_players_that_step_together_see_the_weights_before_the_step(tmp_path: Path) -> None:
    players = two(student_every=1)
    one = run(tmp_path / "one", players, train_steps=1)
    turned = run(tmp_path / "other", dict(reversed(two(student_every=1).items())), train_steps=1)
    assert_equal(one, {name: turned[name] for name in one})


def test_a_loss_leaves_no_gradient_in_another_player(tmp_path: Path) -> None:
    """Alone, the student learns the same beside a critic that stands still, and the critic stays as it is."""
    players = two(critic_every=1000, student_every=1)
    before = weights(players)
    after = run(tmp_path / "run", players)
    assert not moved(before, after, "critic")
    assert moved(before, after, "student")
    assert all(p.grad is None for p in players["critic"].trainable.parameters.values())


@pytest.mark.parametrize("cut", [3, 4])
def test_a_resumed_run_of_two_is_bit_equal(tmp_path: Path, cut: int) -> None:
    whole = run(tmp_path / "whole", two())
    run(tmp_path / "parts", two(), train_steps=cut)
    assert_equal(run(tmp_path / "parts", two(), resume=True), whole)


def rewritten(path: Path, **metadata: str | None) -> None:
    with safe_open(path, "pt") as file:
        kept = file.metadata() | metadata
    save_file(load_file(path), path, {key: value for key, value in kept.items() if value is not None})


def test_a_checkpoint_of_one_player_without_its_name_is_read(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", {"net": Player(trainable(small_net()), squared_error)})
    run(tmp_path / "parts", {"net": Player(trainable(small_net()), squared_error)}, train_steps=3)
    found = newest_checkpoint(tmp_path / "parts" / "checkpoints")
    assert found is not None
    rewritten(found, players=None)  # as all were before there were several
    resumed = run(tmp_path / "parts", {"net": Player(trainable(small_net()), squared_error)}, resume=True)
    assert_equal(resumed, whole)


def test_a_checkpoint_of_other_players_is_refused_by_name(tmp_path: Path) -> None:
    one = {"net": Player(trainable(small_net()), squared_error)}
    for name, players in (("one", one), ("two", two())):
        run(tmp_path / name, players, train_steps=1)
    paths = {name: tmp_path / name / "checkpoints" / "step-00000001.safetensors" for name in ("one", "two")}
    with pytest.raises(FewstepError, match=r"it is of student, critic, but this run trains net"):
        load_checkpoint(paths["two"], one, {})
    with pytest.raises(FewstepError, match=r"it is of net, but this run trains student, critic"):
        load_checkpoint(paths["one"], two(), {})
    rewritten(paths["one"], players=None)
    with pytest.raises(FewstepError, match=r"it is of one player, but this run trains student, critic"):
        load_checkpoint(paths["one"], two(), {})


def test_a_loss_that_is_not_finite_keeps_all_players_as_they_were(tmp_path: Path) -> None:
    players = two(student_every=1)
    after_two = run(tmp_path / "two", two(student_every=1), train_steps=2)

    def spoilt(module: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> Tensor:
        return module(batch[1]).mean() * float("nan") if step == 2 else players["critic"].loss(module, batch, step)

    broken = players | {"critic": Player(players["critic"].trainable, spoilt, rate=0.1)}
    with pytest.raises(FewstepError, match=r"the loss of critic is no longer finite at step 3; .*step-00000002"):
        run(tmp_path / "run", broken)
    assert_equal(weights(broken), after_two)
