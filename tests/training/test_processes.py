"""Runs of several processes, and runs that are killed: the same bits, no sample lost or repeated."""

import io
import os
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fewstep.configs import DistillConfig, TrainingConfig, build
from fewstep.data.cache import Encoded, encode, processes
from fewstep.data.framing import Framing
from fewstep.data.sources import list_samples
from fewstep.diffusion.guidance import Conditioning
from fewstep.errors import FewstepError, UsageError
from fewstep.lora.layers import LoraLayers, initial, target_shapes
from fewstep.lora.low_rank import LowRank
from fewstep.models.load import load_model
from fewstep.models.network import UNetNetwork
from fewstep.training.draws import SampleId, generator, normal
from fewstep.training.loop import loop
from fewstep.training.players import Player, Trainable, average_of
from fewstep.training.run import distill
from fewstep.training.sharding import check_shard, divide
from tests.tiny import tiny_model, tiny_pixels

ROOT = Path(__file__).parents[2]
SAMPLES = 10_000
PROCESSES = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def run_python(*arguments: object, **environment: str) -> str:
    """What a Python program writes."""
    own = {"PYTHONPATH": f"{ROOT}/src:{ROOT}", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, *map(str, arguments)]
    done = subprocess.run(
        words, env=os.environ | own | environment, timeout=900, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def shards(folder: Path, count: int, of: int, size: int = 16) -> str:
    """WebDataset shards of so many small images, no two of which are the same. Returns their pattern."""
    parts = [tarfile.open(folder / f"shards-{number}.tar", "w") for number in range(of)]  # noqa: SIM115
    for number in range(count):
        pixels = np.full((size, size, 3), number % 251, np.uint8)
        pixels[0, 0] = number // 10_000, number // 100 % 100, number % 100
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "PNG", compress_level=0)
        for suffix, content in ((".png", data.getvalue()), (".txt", f"a cat {number % 10}".encode())):
            member = tarfile.TarInfo(f"{number:06}{suffix}")
            member.size = len(content)
            parts[number % of].addfile(member, io.BytesIO(content))
    for part in parts:
        part.close()
    return str(folder / f"shards-{{0..{of - 1}}}.tar")


# One process and several give the same weights


class Shaped:
    """Samples of two shapes, whose input and aim are drawn from the visit in float64."""

    groups, identity = (torch.arange(13), torch.arange(13, 40)), "shaped"

    def __len__(self) -> int:
        return 40

    def batch(self, visits: Sequence[SampleId], device: torch.device) -> tuple[Tensor, Tensor]:
        generators = [generator(visit) for visit in visits]
        return normal(generators, (6,)).double(), normal(generators, (2,)).double()


def squared_error(module: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> Tensor:
    return ((module(batch[0]) - batch[1]) ** 2).mean()


def trained(out: Path, **options: object) -> dict[str, Tensor]:
    """The weights, and their average, of a tiny network in float64 after 50 steps."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    parameters = dict(net.named_parameters())
    average = average_of(parameters, 0.9)
    config = build(TrainingConfig, out=out, train_steps=50, learning_rate=0.01, device="cpu", **options)
    loop({"net": Player(Trainable(net, parameters, {"export": average}), squared_error)}, Shaped(), config)
    return {n: p.detach() for n, p in parameters.items()} | {f"average/{n}": x for n, x in average.shadow.items()}


@pytest.mark.long
def test_two_processes_give_the_weights_of_one(tmp_path: Path) -> None:
    whole = trained(tmp_path / "one", batch_size=8)
    script = tmp_path / "two.py"
    script.write_text(
        "import torch\nfrom pathlib import Path\nfrom tests.training.test_processes import trained\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "weights = {'halves': trained(folder / 'halves', batch_size=4)}\n"
        "weights['quarters'] = trained(folder / 'quarters', batch_size=2, accumulate=2)\n"
        "torch.save(weights, folder / 'weights.pt')\n"
    )
    run_python(*PROCESSES, script)
    for found in torch.load(tmp_path / "weights.pt", weights_only=True).values():
        assert found.keys() == whole.keys()
        for name, x in whole.items():
            torch.testing.assert_close(found[name], x, rtol=0, atol=1e-9)


def test_parts_give_the_weights_of_the_whole(tmp_path: Path) -> None:
    whole, parts = trained(tmp_path / "a", batch_size=8), trained(tmp_path / "b", batch_size=2, accumulate=4)
    for name, x in whole.items():
        torch.testing.assert_close(parts[name], x, rtol=0, atol=1e-9)


# An epoch of many images, in two processes with two workers each


class Recorded:
    """Encoded images as the loop's Data, which notes the visits of each process."""

    def __init__(self, encoded: Encoded, notes: Path) -> None:
        self.encoded, self.notes, self.groups, self.identity = encoded, notes, encoded.groups, encoded.identity

    def __len__(self) -> int:
        return len(self.encoded)

    def batch(self, visits: Sequence[SampleId], device: torch.device) -> Tensor:
        x = self.encoded.latents([visit.index for visit in visits])
        codes = ((x[:, :, 0, 0] + 1) * 127.5).round().long() @ torch.tensor([10_000, 100, 1])
        with (self.notes / os.environ.get("RANK", "0")).open("a") as file:
            file.write("".join(f"{v.epoch} {code}\n" for v, code in zip(visits, codes.tolist(), strict=True)))
        return x.flatten(1)[:, :4]


def epochs(folder: Path, pattern: str, steps: int, resume: bool) -> None:
    """Encode the shards, and visit them for so many steps of 40 samples in all processes."""
    samples = list_samples(pattern, captioned=False).samples
    encoded = encode(samples, load_model(str(folder / "model")), Framing(16), workers=2)
    (folder / "notes").mkdir(exist_ok=True)
    net = nn.Linear(4, 1)
    player = Player(Trainable(net, dict(net.named_parameters()), {}), lambda module, x, step: module(x).mean())
    options = {"train_steps": steps, "batch_size": 20, "device": "cpu", "checkpoint_every": 50, "resume": resume}
    loop({"net": player}, Recorded(encoded, folder / "notes"), build(TrainingConfig, out=folder / "run", **options))


@pytest.mark.long
def test_an_epoch_of_shards_is_seen_once_by_two_processes_with_two_workers(tmp_path: Path) -> None:
    pattern, cache = shards(tmp_path, SAMPLES, 4), tmp_path / "cache"
    tiny_pixels(tmp_path / "model", prediction_type="v_prediction")
    script = tmp_path / "epochs.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom tests.training.test_processes import epochs\n"
        f"epochs(Path({str(tmp_path)!r}), {pattern!r}, int(sys.argv[1]), sys.argv[2] == 'resume')\n"
    )
    run_python(*PROCESSES, script, 125, "begin", FEWSTEP_CACHE=str(cache))  # half an epoch
    run_python(*PROCESSES, script, 500, "resume", FEWSTEP_CACHE=str(cache))
    lines = [[line.split() for line in (tmp_path / "notes" / rank).read_text().splitlines()] for rank in "01"]
    by_epoch = [[[int(code) for epoch, code in of_rank if int(epoch) == e] for of_rank in lines] for e in (0, 1)]
    for of_ranks in by_epoch:
        assert [len(codes) for codes in of_ranks] == [SAMPLES // 2] * 2
        assert Counter(of_ranks[0] + of_ranks[1]) == dict.fromkeys(range(SAMPLES), 1)
    assert by_epoch[0] != by_epoch[1]
    with (tmp_path / "notes").joinpath("0").open() as file:
        assert file.readline()
    rows = sum(len(_keys(path)) for path in (cache / "encoded").glob("latents-*/*.safetensors"))
    assert rows == SAMPLES  # none was encoded twice


def _keys(path: Path) -> Tensor:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        found: Tensor = file.get_tensor("keys")
    return found


def test_processes_that_do_not_share_the_cache_are_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE_S", 0.01)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(FewstepError, match=r"^not all of the 2 processes write to .*\n\nhint: set FEWSTEP_CACHE"):
        processes.meet(tmp_path / "sets" / "index.safetensors")
    monkeypatch.setattr(processes, "PATIENCE_S", 60.0)
    processes.mark_of(tmp_path / "sets" / "index.safetensors", 0, 2).touch()
    processes.meet(tmp_path / "sets" / "index.safetensors")


def divided(folder: Path) -> None:
    """Compare a LoRA's gradients in float64 beside a whole network and a divided one; then train beside such a one."""
    model = load_model(str(folder / "model"), torch.float64)
    layers = LoraLayers(model.unet.requires_grad_(False))
    shapes = target_shapes(model.unet)
    layers.add("a", {n: LowRank(u.A, torch.ones_like(u.B)) for n, u in initial(shapes, 2, 0).items()}, trainable=True)
    layers.double()
    parameters = layers.parameters_of("a")
    x, t = torch.randn(2, 4, 2, 2, dtype=torch.float64), torch.tensor([3, 900])
    text = Conditioning(model.embed(["a cat", "a dog"]).text.double())
    gradients = []
    for _ in range(2):
        with layers.using(("a", 1.0)):
            UNetNetwork(model.unet)(x, t, text).square().mean().backward()
        gradients.append({name: p.grad for name, p in parameters.items()})
        for parameter in parameters.values():
            parameter.grad = None
        if len(gradients) == 1:
            divide(model.unet)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-12)
    held = sum(p.to_local().numel() for p in model.unet.parameters())
    assert held < 0.6 * sum(p.numel() for p in model.unet.parameters())
    options = {"model": str(folder / "model"), "data": str(folder / "shards-{0..2}.tar"), "rank": 2, "shard": True}
    distill(build(DistillConfig, **options, out=folder / "run", train_steps=2, batch_size=2, device="cpu"))


@pytest.mark.long
def test_a_divided_network_gives_a_lora_the_gradients_of_a_whole_one(shards_and_model: Path) -> None:
    script = shards_and_model / "divided.py"
    script.write_text(
        "from pathlib import Path\nfrom tests.training.test_processes import divided\n"
        f"divided(Path({str(shards_and_model)!r}))\n"
    )
    run_python(*PROCESSES, script, FEWSTEP_CACHE=str(shards_and_model / "cache"))
    assert (shards_and_model / "run" / "lora.safetensors").is_file()


def test_one_process_or_packed_weights_are_refused(shards_and_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"model": str(shards_and_model / "model"), "data": str(shards_and_model), "out": shards_and_model / "run"}
    with pytest.raises(UsageError, match="among several processes, and there is one"):
        distill(build(DistillConfig, **options, shard=True, device="cpu"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="kept in precision, not in int8"):
        check_shard(build(DistillConfig, **options, shard=True, frozen_weights="int8"))


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_what_divides_the_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(UsageError, match=rf"^accelerate is set to {name}, which divides the weights among processes"):
        trained(tmp_path, batch_size=2)


# Kills


@pytest.fixture
def shards_and_model(tmp_path: Path) -> Path:
    tiny_model(tmp_path / "model")
    shards(tmp_path, 40, 3)
    return tmp_path


@pytest.mark.long
@pytest.mark.parametrize(("kills", "ranks"), [(20, 1), (6, 2)])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(
    shards_and_model: Path, kills: int, ranks: int
) -> None:
    print(run_python("-m", "tests.training.killing", shards_and_model, kills, ranks))
