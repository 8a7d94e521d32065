"""The loop: resume is bit-equal, accumulation and processes reproduce one run, a Gaussian is distilled right."""

import errno
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fewstep.configs import DistillConfig, TrainingConfig, build
from fewstep.diffusion.consistency import ConsistencyDenoiser
from fewstep.diffusion.guidance import Conditioning, GuidedDenoiser
from fewstep.diffusion.prediction import prediction_named
from fewstep.diffusion.sampler import ImageNoise, sample, sampling_levels
from fewstep.diffusion.schedule import lcm_grid, schedule_from_config, skipping_grid
from fewstep.diffusion.solvers import SOLVERS
from fewstep.errors import FewstepError, UsageError
from fewstep.training import checkpoint, progress
from fewstep.training.checkpoint import newest_checkpoint
from fewstep.training.draws import Order, SampleId, StepOrder, generator, normal, uniform
from fewstep.training.loop import loop
from fewstep.training.losses import lcd_loss, pseudo_huber
from fewstep.training.players import Average, Player, Trainable, average_of
from fewstep.training.progress import check_folder, only_run, write_config

SCHEDULE = schedule_from_config({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"})


class Points:
    """Samples whose input and aim are drawn from the visit."""

    def __len__(self) -> int:
        return 10

    def batch(self, visits: Sequence[SampleId], device: torch.device) -> tuple[Tensor, Tensor]:
        generators = [generator(visit) for visit in visits]
        return normal(generators, (6,)).to(device), normal(generators, (2,)).to(device)


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))


def squared_error(module: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> Tensor:
    return ((module(batch[0]) - batch[1]) ** 2).mean()


def train(out: Path, **options: object) -> dict[str, Tensor]:
    net = small_net()
    parameters = dict(net.named_parameters())
    trainable = Trainable(net, parameters, {"export": average_of(parameters, 0.9)})
    values = {"train_steps": 12, "batch_size": 4, "learning_rate": 0.01, "device": "cpu", "checkpoint_every": 5}
    config = build(TrainingConfig, out=out, **(values | options))
    loop({"net": Player(trainable, squared_error)}, Points(), config)
    averages = {f"average/{k}": v for k, v in trainable.averages["export"].shadow.items()}
    return {k: p.detach().clone() for k, p in parameters.items()} | averages


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    train(tmp_path / "parts", train_steps=7)
    assert_equal(train(tmp_path / "parts", resume=True), whole)
    lines = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == sorted({line["step"] for line in lines})


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("damage", [cut, lambda path: path.write_bytes(b"")], ids=["cut", "empty"])
def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    whole, run = train(tmp_path / "whole"), tmp_path / "parts"
    train(run, train_steps=7)
    damage(run / "checkpoints" / "step-00000007.safetensors")
    capsys.readouterr()
    assert_equal(train(run, resume=True, checkpoint_every=6), whole)
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert re.match(r"note: cannot resume from .*step-00000007.*; going on from step-00000005", notes[0])
    lines = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines == sorted(set(lines))


def test_a_checkpoint_that_could_not_be_read_gives_way_to_the_next_that_is_written(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, train_steps=10)
    cut(run / "checkpoints" / "step-00000010.safetensors")
    train(run, train_steps=7, checkpoint_every=6, resume=True)
    names = [path.name for path in sorted((run / "checkpoints").iterdir())]
    assert names == ["step-00000006.safetensors", "step-00000007.safetensors"]


def test_a_run_none_of_whose_checkpoints_can_be_read_stops(tmp_path: Path) -> None:
    train(tmp_path, train_steps=7)
    for path in (tmp_path / "checkpoints").iterdir():
        cut(path)
    with pytest.raises(FewstepError, match=r"^cannot resume from .*step-00000007.*\n\nhint: "):
        train(tmp_path, resume=True)


def test_what_a_killed_run_left_of_its_last_line_is_dropped(tmp_path: Path) -> None:
    train(tmp_path, train_steps=7, log_every=1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    train(tmp_path, resume=True, log_every=1)
    lines = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(1, 13))


def test_two_runs_cannot_write_to_one_folder(tmp_path: Path) -> None:
    train(tmp_path, train_steps=5)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    config = build(TrainingConfig, out=tmp_path, batch_size=4, resume=True)
    with only_run(config):
        for begin in (lambda: train(tmp_path, resume=True), lambda: check_folder(config)):
            with pytest.raises(FewstepError, match=rf"^another run writes to {tmp_path} \(process {os.getpid()} on "):
                begin()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    check_folder(config)
    train(tmp_path, resume=True)
    assert not (tmp_path / "run.lock").exists()


def test_a_folder_that_a_killed_run_held_is_free(tmp_path: Path) -> None:
    (tmp_path / "run.lock").write_text("process 1 on another machine")
    check_folder(build(TrainingConfig, out=tmp_path))
    train(tmp_path)


def test_a_path_is_the_same_however_it_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("images", "others", "emoji"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    run = {"model": "emoji", "out": "run", "resume": True}
    write_config(build(DistillConfig, **run, data="images"))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"] == "emoji"  # the one that ships
    monkeypatch.chdir(tmp_path / "others")
    run["out"] = tmp_path / "run"
    for data in ("../images", "../images/", tmp_path / "images", "../others/../link"):
        check_folder(build(DistillConfig, **run, data=data))
    with pytest.raises(UsageError, match=rf"^data \. differs from the run in .* \({tmp_path / 'images'}\)"):
        check_folder(build(DistillConfig, **run, data="."))
    with pytest.raises(UsageError, match=r"^model \.\./images differs from the run in .* \(emoji\)"):
        check_folder(build(DistillConfig, **(run | {"model": "../images"}), data="../images"))


def test_accumulating_parts_reproduces_the_large_batch(tmp_path: Path) -> None:
    whole, parts = train(tmp_path / "a", batch_size=4), train(tmp_path / "b", batch_size=2, accumulate=2)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-5, atol=1e-6)


class Beside(nn.Module):
    """One of two players beside a network that both have in their modules, as LoRAs are."""

    def __init__(self, network: nn.Module, layers: nn.ModuleList, own: int) -> None:
        super().__init__()
        self.network, self.layers, self.own = network, layers, own

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) + self.layers[self.own](x)


def train_two(out: Path, batch_size: int) -> dict[str, Tensor]:
    network, layers = small_net().requires_grad_(False), nn.ModuleList([nn.Linear(6, 2), nn.Linear(6, 2)])
    players, weights = {}, {}
    for own, layer in enumerate(layers):
        parameters = dict(layer.named_parameters())
        players[f"{own}"] = Player(
            Trainable(Beside(network, layers, own), parameters, {}), squared_error, every=own + 1
        )
        weights |= {f"{own}/{name}": parameter for name, parameter in parameters.items()}
    values = {"train_steps": 5, "batch_size": batch_size, "learning_rate": 0.01, "device": "cpu"}
    loop(players, Points(), build(TrainingConfig, out=out, **values))
    return {name: parameter.detach().clone() for name, parameter in weights.items()}


@pytest.mark.long
def test_two_processes_reproduce_one(tmp_path: Path) -> None:
    whole = train(tmp_path / "one", batch_size=4) | train_two(tmp_path / "one of two players", batch_size=4)
    script = tmp_path / "two.py"
    script.write_text(
        "import sys, torch\nfrom pathlib import Path\nfrom tests.training.test_loop import train, train_two\n"
        "weights = train(Path(sys.argv[1]) / 'two', batch_size=2)\n"
        "weights |= train_two(Path(sys.argv[1]) / 'two of two players', batch_size=2)\n"
        "torch.save(weights, Path(sys.argv[1]) / 'weights.pt')\n"
    )
    root = Path(__file__).parents[2]
    environment = os.environ | {
        "PYTHONPATH": f"{root}/src:{root}",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    subprocess.run([*command, str(tmp_path)], env=environment, check=True, timeout=240, capture_output=True)
    two = torch.load(tmp_path / "weights.pt", weights_only=True)
    for name in whole:
        torch.testing.assert_close(whole[name], two[name], rtol=1e-5, atol=1e-6)


def test_every_epoch_visits_every_sample_once_in_an_order_of_its_own() -> None:
    visits = Order(10, seed=3).visits(0, 30)
    epochs = [[v.index for v in visits if v.epoch == e] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert Order(10, seed=3).visits(7, 5) == visits[7:12]


def test_draws_depend_on_the_visit_alone() -> None:
    a, b = SampleId(0, 1, 2), SampleId(0, 1, 3)
    assert torch.equal(normal([generator(a), generator(b)], (3,))[0], normal([generator(a)], (3,))[0])
    assert not torch.equal(normal([generator(a)], (3,)), normal([generator(b)], (3,)))
    assert not torch.equal(normal([generator(a)], (3,)), normal([generator(SampleId(1, 1, 2))], (3,)))


def test_an_average_follows_by_its_decay() -> None:
    average = Average(0.9, {"a": torch.zeros(1)})
    average.update({"a": torch.ones(1)}, step=1)
    torch.testing.assert_close(average.shadow["a"], torch.tensor([0.1]))


def test_a_loss_that_is_not_finite_stops_with_the_last_good_state(tmp_path: Path) -> None:
    net = small_net()
    trainable = Trainable(net, dict(net.named_parameters()), {})
    config = build(TrainingConfig, out=tmp_path / "run", train_steps=9, device="cpu", learning_rate=0.01)
    calls = []

    def loss(module: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> Tensor:
        calls.append(1)
        return module(batch[0]).mean() * (float("nan") if len(calls) == 4 else 1)

    with pytest.raises(FewstepError, match=r"no longer finite at step 4; the last good state is .*step-00000003"):
        loop({"net": Player(trainable, loss)}, Points(), config)
    assert all(p.isfinite().all() for p in trainable.parameters.values())
    assert newest_checkpoint(tmp_path / "run" / "checkpoints") is not None


def test_every_checkpoint_but_the_newest_is_removed(tmp_path: Path) -> None:
    train(tmp_path, checkpoint_every=2, keep_checkpoints=3)
    names = [path.name for path in sorted((tmp_path / "checkpoints").iterdir())]
    assert names == [f"step-{step:08}.safetensors" for step in (8, 10, 12)]


def test_all_options_that_differ_from_the_first_run_are_named(tmp_path: Path) -> None:
    train(tmp_path, train_steps=5)
    with pytest.raises(UsageError, match=r"^beta2 0\.5, seed 3 differ from the run in .* \(0\.999, 0\)"):
        check_folder(build(TrainingConfig, out=tmp_path, resume=True, batch_size=4, seed=3, beta2=0.5))


def test_a_step_may_be_divided_otherwise_when_a_run_goes_on(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    train(tmp_path / "parts", train_steps=7)
    with pytest.raises(UsageError, match=r"^batch_size 2 x accumulate 3 x 1 process is 6 samples a step, but .* has 4"):
        train(tmp_path / "parts", resume=True, batch_size=2, accumulate=3)
    parts = train(tmp_path / "parts", resume=True, batch_size=2, accumulate=2)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-5, atol=1e-6)


def test_a_run_of_two_processes_goes_on_in_one_with_batches_as_large(tmp_path: Path) -> None:
    whole, run = train(tmp_path / "whole"), tmp_path / "parts"
    train(run, train_steps=7)
    before = json.loads((run / "config.json").read_text())
    assert before["processes"] == 1
    (run / "config.json").write_text(json.dumps(before | {"processes": 2, "batch_size": 2}))
    with pytest.raises(UsageError, match=r"^batch_size 2 x accumulate 1 x 1 process is 2 samples a step, but .* has 4"):
        train(run, resume=True, batch_size=2)
    assert_equal(train(run, resume=True), whole)


@pytest.mark.parametrize("given", ["first", "first/checkpoints/step-00000007.safetensors"])
def test_a_run_goes_on_from_another_in_a_folder_of_its_own(tmp_path: Path, given: str) -> None:
    whole = train(tmp_path / "whole")
    train(tmp_path / "first", train_steps=7)
    assert_equal(
        train(tmp_path / "second", resume_from=tmp_path / given, train_steps=10),
        train(tmp_path / "ten", train_steps=10),
    )
    assert_equal(train(tmp_path / "second", resume_from=tmp_path / given, resume=True), whole)  # from its own newest
    with pytest.raises(UsageError, match=r"^seed 1 differs from the run in .*first \(0\)"):
        train(tmp_path / "third", resume_from=tmp_path / given, seed=1)
    with pytest.raises(UsageError, match=r"^resume_from .*: no checkpoint is there"):
        train(tmp_path / "third", resume_from=tmp_path)
    assert not (tmp_path / "third").exists() or not list((tmp_path / "third").iterdir())


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_stops_no_run_that_has_time_to_try_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def save_file(*arguments: object) -> None:
        calls.append(1)
        full() if 2 < len(calls) < 5 else saved(*arguments)

    saved = checkpoint.save_file
    whole = train(tmp_path / "whole", checkpoint_every=3)
    monkeypatch.setattr(checkpoint, "save_file", save_file)
    assert_equal(train(tmp_path / "full", checkpoint_every=3), whole)
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert re.match(r"note: no space left to write .*step-00000009.*; training goes on, and tries again 3 steps", line)
    names = [path.name for path in sorted((tmp_path / "full" / "checkpoints").iterdir())]
    assert names == [f"step-{step:08}.safetensors" for step in (6, 12)]


def test_a_full_disk_leaves_lines_out_of_the_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def append_line(path: Path, line: str) -> None:
        if json.loads(line)["step"] in (4, 5):
            raise FewstepError(f"no space left to write {path}", "free some space")
        written(path, line)

    written = progress.append_line
    monkeypatch.setattr(progress, "append_line", append_line)
    train(tmp_path, log_every=1)
    lines = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, *range(6, 13)]
    assert capsys.readouterr().err.count("training goes on, and lines are missing there") == 1


def test_the_oldest_checkpoints_make_room_for_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save_file(tensors: object, path: Path, *rest: object) -> None:
        full() if len(list(run.glob("step-*"))) > 1 else saved(tensors, path, *rest)

    saved, run = checkpoint.save_file, tmp_path / "checkpoints"
    monkeypatch.setattr(checkpoint, "save_file", save_file)
    train(tmp_path, checkpoint_every=3, keep_checkpoints=5)
    assert [path.name for path in sorted(run.iterdir())] == [f"step-{step:08}.safetensors" for step in (9, 12)]


class Shaped(Points):
    """Samples of two shapes, one of them of four samples."""

    groups, identity = (torch.arange(6), torch.arange(6, 10)), "first"


def test_a_run_of_other_samples_is_not_gone_on_with(tmp_path: Path) -> None:
    def begin(data: Points, **options: object) -> None:
        net = small_net()
        config = build(TrainingConfig, out=tmp_path, device="cpu", train_steps=3, **options)
        loop({"net": Player(Trainable(net, dict(net.named_parameters()), {}), squared_error)}, data, config)

    begin(Shaped())
    other = Shaped()
    other.identity = "second"
    with pytest.raises(UsageError, match=r"^the images or captions differ from those of the run"):
        begin(other, resume=True)
    begin(Shaped(), resume=True)


@pytest.mark.parametrize("sizes", [(7, 12, 1), (5, 5), (40,), (3, 100)])
def test_steps_of_one_shape_visit_every_sample_as_often_as_the_others(sizes: tuple[int, ...]) -> None:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    groups = tuple(torch.arange(start, start + size) for start, size in zip(starts, sizes, strict=True))
    order, total = StepOrder(groups, 3, 4), sum(sizes)
    steps = [order.visits(step, 0, 4) for step in range(total)]  # four epochs
    shape_of = {int(i): number for number, group in enumerate(groups) for i in group}
    assert all(len({shape_of[visit.index] for visit in step}) == 1 for step in steps)
    visits = [visit for step in steps for visit in step]
    assert len(set(visits)) == len(visits) == 4 * total
    counts = Counter(visit.index for visit in visits)
    assert all(counts[i] == 4 for i in range(total)), counts
    for epoch in range(4):
        of_epoch = Counter(visit.index for visit in visits if visit.epoch == epoch)
        assert of_epoch == dict.fromkeys(range(total), 1)
    assert [v.index for v in visits[:total]] != [v.index for v in visits[total : 2 * total]]


def test_a_step_divided_is_the_same_step() -> None:
    order = StepOrder((torch.arange(7), torch.arange(7, 20)), 3, 8)
    for step in range(12):
        assert [*order.visits(step, 0, 4), *order.visits(step, 4, 2), *order.visits(step, 6, 2)] == order.visits(
            step, 0, 8
        )


def test_with_one_shape_the_order_is_that_of_the_samples() -> None:
    order, plain = StepOrder((torch.arange(10),), 3, 4), Order(10, 3)
    assert [order.visits(step, 1, 3) for step in range(20)] == [plain.visits(4 * step + 1, 3) for step in range(20)]


# A Gaussian data set has a known teacher; distilled by our loop, a small network must give its data back.

MEAN, STD = 1.0, 0.5
K = 40


def gaussian_teacher(x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
    """E[x_0 | x_t], as an x_0-network."""
    level = SCHEDULE.at(t)
    gain = level.alpha * STD**2 / (level.alpha**2 * STD**2 + level.sigma**2)
    return MEAN + gain * (x - level.alpha * MEAN)


class GaussianStudent(nn.Module):
    """An x_0-network of timestep and value: affine in x, with coefficients learned as functions of t."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 2))

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        angles = t[:, None] / 1000 * torch.pi * torch.arange(1, 9)
        scale, shift = self.body(torch.cat([angles.sin(), angles.cos()], 1)).float().chunk(2, 1)
        return scale.view(-1, 1, 1, 1) * x + shift.view(-1, 1, 1, 1)


@dataclass
class GaussianData:
    """Visits of Gaussian samples: x_0, noise and the place of the timestep."""

    samples: int = 4096

    def __len__(self) -> int:
        return self.samples

    def batch(self, visits: Sequence[SampleId], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        generators = [generator(visit) for visit in visits]
        x_0 = MEAN + STD * normal([generator(SampleId(0, -1, v.index)) for v in visits], (1, 4, 4))
        return x_0, normal(generators, (1, 4, 4)), uniform(generators)


def distilled(tmp_path: Path) -> nn.Module:
    """A student distilled from the Gaussian teacher by the loop, its averaged weights in place."""
    torch.manual_seed(0)
    student, target = GaussianStudent(), GaussianStudent().requires_grad_(False)
    target.load_state_dict(student.state_dict())
    parameters = dict(student.named_parameters())
    averages = {"target": Average(0.95, dict(target.named_parameters())), "export": average_of(parameters, 0.995)}
    condition, x_0_network = Conditioning(torch.zeros(1, 1, 1)), prediction_named("sample")
    denoiser = partial(GuidedDenoiser, prediction=x_0_network, conditioning=condition)
    grid = torch.tensor(skipping_grid(K))

    def loss(module: nn.Module, batch: tuple[Tensor, Tensor, Tensor], step: int) -> Tensor:
        x_0, eps, time = batch
        s = grid[(time * len(grid)).long()]
        levels = SCHEDULE.at(s), SCHEDULE.at((s - K).clamp(min=0))
        psi, roles = SOLVERS["dpm-solver++2s"], (denoiser(module), denoiser(target), denoiser(gaussian_teacher))
        return lcd_loss(*roles, psi, SCHEDULE, x_0, *levels, eps, lambda d: pseudo_huber(d, 0.05))

    options = {"train_steps": 1500, "batch_size": 48, "learning_rate": 5e-3, "decay": "cosine", "device": "cpu"}
    config = build(TrainingConfig, out=tmp_path / "run", log_every=500, checkpoint_every=1500, **options)
    loop({"student": Player(Trainable(student, parameters, averages), loss)}, GaussianData(), config)
    student.load_state_dict(averages["export"].shadow)
    return student


def test_a_small_network_distilled_by_the_loop_gives_the_data_back(tmp_path: Path) -> None:
    student = distilled(tmp_path)
    denoiser = GuidedDenoiser(student, prediction_named("sample"), Conditioning(torch.zeros(1, 1, 1)))
    noise = ImageNoise(range(4000), (1, 4, 4))
    for steps in (1, 4):
        with torch.no_grad():
            levels = sampling_levels(SCHEDULE, lcm_grid(steps, K))
            # Stable Diffusion's schedule ends short of pure noise: begin where the forward process does.
            x = levels[0].alpha * (MEAN + STD * noise()) + levels[0].sigma * noise()
            x = sample(ConsistencyDenoiser(denoiser), SOLVERS["lcm"], SCHEDULE, levels, x, noise)
        assert float(x.mean()) == pytest.approx(MEAN, rel=0.02)
        assert float(x.std()) == pytest.approx(STD, rel=0.05)
