"""Every method: what it may touch, and that the caller's networks are afterwards as they were."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fewstep
from fewstep.configs import AdapterConfig, DistillConfig, FinetuneConfig, build
from fewstep.configs.base import entries
from fewstep.diffusion.guidance import Conditioning, with_guidance
from fewstep.errors import FewstepError, UsageError
from fewstep.lora.recipe import Recipe
from fewstep.models.load import load_model
from fewstep.models.model import Model
from fewstep.training.adapt import Batch
from fewstep.training.draws import SampleId, generator, normal, uniform
from fewstep.training.loop import train_step
from fewstep.training.methods import METHODS, Method, method_of
from fewstep.training.methods.denoising import Denoising
from fewstep.training.networks import STUDENT, Networks, networks_of
from fewstep.training.players import Player
from fewstep.training.run import train

ALL = [*METHODS, "denoising"]
PACKAGE = Path(fewstep.__file__).parent
METHOD_FILES = Path("training", "methods")


class Latents:
    """Batches for the tiny model."""

    def __len__(self) -> int:
        return 6

    def batch(self, visits: Sequence[SampleId], device: torch.device) -> Batch:
        generators = [generator(visit) for visit in visits]
        x_0, eps, text = (normal(generators, shape) for shape in ((4, 8, 8), (4, 8, 8), (16, 16)))
        empty = Conditioning(torch.zeros_like(text))
        return Batch(x_0, Conditioning(text), empty, eps, *(uniform(generators) for _ in range(3)))


@pytest.fixture
def model(tiny_model_folder: Path) -> Model:
    """A few-step model, so that every method takes it."""
    return replace(load_model(str(tiny_model_folder)), recipe=Recipe(method="lcd", solver="lcm", k=50))


def made(name: str, model: Model, out: Path, **values: object) -> Method:
    common = {"model": "m", "data": "d", "out": out, "train_steps": 2, "batch_size": 2, "device": "cpu"}
    common |= {} if values.get("full") else {"rank": 2}
    if name == "denoising":
        return Denoising(model, build(FinetuneConfig, **(common | values)))
    config = build(DistillConfig, method=name, **(common | values))
    return method_of(config)(model, config)


def reads(name: str) -> frozenset[str]:
    return METHODS[name].reads if name in METHODS else frozenset()


def bits(network: nn.Module) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in network.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(x, other[name]) for name, x in one.items())


@contextmanager
def playing(method: Method) -> Iterator[tuple[Networks, dict[str, Player]]]:
    with networks_of(method.model, method.config, method.with_teacher) as networks:
        yield networks, method.players(networks)


KINDS = {"lora": {}, "full": {"full": True}, "w-embedding": {"full": True, "w_embedding": True}}
EACH = [
    (name, kind) for name in ALL for kind in KINDS if kind != "w-embedding" or kind.replace("-", "_") in reads(name)
]


@pytest.mark.parametrize(("name", "kind"), EACH)
def test_hygiene(name: str, kind: str, model: Model, tmp_path: Path) -> None:
    base, batch = bits(model.unet), Latents().batch([SampleId(0, 0, 0), SampleId(0, 0, 1)], torch.device("cpu"))
    levels, options = torch.tensor([999, 499]), KINDS[kind]
    with playing(made(name, model, tmp_path, **options)) as (networks, players), torch.no_grad():
        student = players[STUDENT].trainable.module
        asked = batch.x_0, levels, batch.conditioning
        before = model.unet(batch.x_0, levels, batch.conditioning.text)[0] if options else networks.teacher(*asked)
        if kind == "w-embedding":
            asked = batch.x_0, levels, with_guidance(batch.conditioning, torch.tensor([1.0, 9.0]))
        assert torch.equal(student(*asked), before)
        with torch.enable_grad():
            for player in players.values():
                others = [p for other in players.values() for p in other.trainable.parameters.values()]
                own = list(player.trainable.parameters.values())
                player.loss(player.trainable.module, batch, 0).backward(inputs=own)
                with_gradient = {id(p) for p in [*others, *model.unet.parameters()] if p.grad is not None}
                assert with_gradient == {id(p) for p in own}
                for p in own:
                    p.grad = None
        for p in players[STUDENT].trainable.parameters.values():
            p += 0.1
        assert not torch.equal(student(*asked), before)
    assert same(bits(model.unet), base)


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kind in EACH if name in METHODS])
def test_the_target_follows_the_student(name: str, kind: str, model: Model, tmp_path: Path) -> None:
    """The average moves once the student has learnt, and so does the loss that aims at it."""
    batch = Latents().batch([SampleId(0, 0, 0), SampleId(0, 0, 1)], torch.device("cpu"))
    with playing(made(name, model, tmp_path, **KINDS[kind])) as (_, players), torch.no_grad():
        player = players[STUDENT]
        average = player.trainable.averages["target"]
        before = {key: x.clone() for key, x in average.shadow.items()}
        for p in player.trainable.parameters.values():
            p += 0.1
        apart = player.loss(player.trainable.module, batch, 1)  # ct's first step aims at the images themselves
        average.update(player.trainable.parameters, 2)
        assert not same(before, average.shadow)
        assert not torch.equal(player.loss(player.trainable.module, batch, 1), apart)


@pytest.mark.parametrize("name", METHODS)
def test_without_an_average_the_student_is_its_own_target(name: str, model: Model, tmp_path: Path) -> None:
    with playing(made(name, model, tmp_path, target="student")) as (networks, players), torch.no_grad():
        student = players[STUDENT].trainable
        assert "target" not in student.averages
        for p in student.parameters.values():
            p += 0.1
        batch = Latents().batch([SampleId(0, 0, 0)], torch.device("cpu"))
        asked = batch.x_0, torch.tensor([999]), batch.conditioning
        assert torch.equal(networks.network(STUDENT)(*asked), student.module(*asked))
        assert not torch.equal(networks.teacher(*asked), student.module(*asked))


def look(network: nn.Module) -> list[object]:
    """Everything of a network that training might leave changed, its weights apart."""
    found: list[object] = [(p.requires_grad, p.grad, p.dtype, p.device) for p in network.parameters()]
    for module in network.modules():
        hooks = [len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks)]
        found.append((hooks, module.training, getattr(module, "gradient_checkpointing", None), module.forward))
    return found


@pytest.mark.parametrize("options", [{}, {"precision": "bf16"}, {"full": True}], ids=["lora", "bf16", "full"])
@pytest.mark.parametrize("ends", ["well", "badly"])
@pytest.mark.parametrize("name", ["lcd", "lcf", "denoising"])
def test_the_callers_networks_are_left_as_they_were(
    name: str, ends: str, options: dict[str, object], model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.unet.train()
    model.unet.conv_in.requires_grad_(False)
    model.unet.conv_out.requires_grad_(True)
    networks = [model.unet, model.vae, model.text_encoder]
    before = [(look(network), bits(network)) for network in networks]
    method = made(name, model, tmp_path, gradient_checkpointing=True, **options)
    if ends == "well":
        train(method, Latents())
        assert list((tmp_path / "model" if options.get("full") else tmp_path).glob("*.*"))
    else:
        monkeypatch.setattr("fewstep.training.loop.train_step", broken)
        with pytest.raises(FewstepError, match="spoilt"):
            train(method, Latents())
    for network, (state, weights) in zip(networks, before, strict=True):
        assert look(network) == state
        assert same(bits(network), weights)


def broken(*arguments: object) -> None:
    train_step(*arguments)
    raise FewstepError("spoilt", "on purpose")


def test_names_in_configs_are_those_of_the_registry() -> None:
    found = dict(entries("training/methods", "METHODS"))
    assert list(found) == list(METHODS)
    assert all(len(said) > 20 for said in found.values())


def test_what_a_method_does_not_read_is_refused(model: Model, tmp_path: Path) -> None:
    common = {"model": "m", "data": "d", "out": tmp_path}
    with pytest.raises(UsageError, match=r"^psi: no effect with method lcf\n\nhint: .*use method lcd$"):
        method_of(build(DistillConfig, **common, method="lcf", psi="heun"))
    for name, method in METHODS.items():
        assert method.reads <= DistillConfig.model_fields.keys() - AdapterConfig.model_fields.keys(), name


TOY = '''
"""A toy of two players: a critic that learns at every step, and the student at every second."""

from dataclasses import dataclass
from typing import ClassVar

from fewstep.training.methods.consistency import recipe_of
from fewstep.training.networks import STUDENT
from fewstep.training.players import Player


@dataclass(frozen=True)
class Toy:
    """A toy, of no use to anyone."""

    model: object
    config: object

    reads: ClassVar[frozenset[str]] = frozenset({"k"})
    with_teacher: ClassVar[bool] = True

    @staticmethod
    def check(config):
        pass

    def players(self, networks):
        student, critic = networks.trainable(STUDENT), networks.trainable("critic")
        other = networks.network("critic")

        def apart(module, batch, step):
            t = (batch.time * 1000).long()
            return (module(batch.x_0, t, batch.conditioning) - other(batch.eps, t, batch.conditioning)).square().mean()

        return {STUDENT: Player(student, apart, every=2), "critic": Player(critic, apart)}

    def recipe(self, samples):
        return recipe_of(self.model, self.config, samples, "tcd", None)


METHODS: dict[str, type] = {"toy": Toy}
'''

USES = """
import json, sys
from pathlib import Path
from fewstep.cli import main
main(["distill", "--help"])
assert "torch" not in sys.modules
model, data = sys.argv[1:]
words = ["distill", "--method", "toy", "--model", model, "--data", data, "--out", "run", "--device", "cpu"]
words += ["--rank", "2", "--batch-size", "2", "--steps", "3", "--log-every", "1"]
assert main([*words, "--psi", "heun"]) == 2
assert main(words) == 0
lines = [json.loads(line) for line in Path("run", "metrics.jsonl").read_text().splitlines()]
assert [("loss" in line, "critic/loss" in line) for line in lines] == [(False, True), (True, True), (False, True)]
from fewstep.lora.files import open_lora
recipe = open_lora(Path("run", "lora.safetensors")).recipe
assert (recipe.method, recipe.solver, recipe.accelerates) == ("toy", "tcd", True)
"""


def test_a_method_is_one_file(tiny_model_folder: Path, tiny_data_folder: Path, tmp_path: Path) -> None:
    """In a copy of the package with one file more."""
    copy = tmp_path / "fewstep"
    for folder in (Path(), *(parent for parent in reversed(METHOD_FILES.parents) if parent.name), METHOD_FILES):
        (copy / folder).mkdir()
        for entry in (PACKAGE / folder).iterdir():
            if entry.name != "__pycache__" and not METHOD_FILES.is_relative_to(folder / entry.name):
                (copy / folder / entry.name).symlink_to(entry)
    (copy / METHOD_FILES / "toy.py").write_text(TOY, encoding="utf-8")
    command = [sys.executable, "-c", USES, str(tiny_model_folder), str(tiny_data_folder)]
    environment = os.environ | {"PYTHONPATH": "", "COLUMNS": "100"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "--psi: no effect with --method toy" in done.stderr
    shown = " ".join(re.findall(r"[\w+-]+", done.stdout))
    assert "toy A toy of no use to anyone" in shown
    assert re.search(r"choices cd ct lcd lcf pcm tcd toy", shown)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["method"] == "toy"
