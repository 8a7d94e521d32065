"""Frozen weights in fewer bits: near the weights they stand for, the same for teacher and student, never trained."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.configs import DistillConfig, build
from fewstep.models.load import load_model
from fewstep.models.model import Model
from fewstep.training.draws import SampleId
from fewstep.training.frozen import PackedLayer, loading_dtype, pack, packed, unpacked
from fewstep.training.methods import method_of
from fewstep.training.networks import STUDENT, networks_of
from tests.training.test_methods import Latents

ERRORS = {"bf16": 0.003, "int8": 0.012, "nf4": 0.1}  # in norm, of normally distributed weights


def config_of(out: Path, **options: object) -> DistillConfig:
    common = {"model": "m", "data": "d", "out": out, "rank": 2, "device": "cpu"}
    return build(DistillConfig, **(common | options))


@pytest.fixture
def model(tiny_model_folder: Path) -> Model:
    return load_model(str(tiny_model_folder))


@pytest.mark.parametrize("shape", [(48, 96), (20, 144), (64, 128), (32, 16, 3, 3)])
@pytest.mark.parametrize("storage", ERRORS)
def test_a_packed_weight_is_near_the_weight_in_fewer_bytes(storage: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape)
    values, scales = packed(weight, storage)
    made = unpacked(values, scales, weight.shape, torch.float32)
    assert made.shape == weight.shape
    assert (made - weight).norm() / weight.norm() < ERRORS[storage]
    held = values.nbytes + (0 if scales is None else scales.nbytes)
    assert held <= weight.nbytes * {"bf16": 0.5, "int8": 0.28, "nf4": 0.16}[storage]


@pytest.mark.parametrize("storage", ERRORS)
def test_a_packed_layer_computes_and_differentiates_with_its_unpacked_weight(storage: str) -> None:
    torch.manual_seed(0)
    network = nn.ModuleDict({"linear": nn.Linear(64, 96), "conv": nn.Conv2d(16, 32, 3, stride=2, padding=1)})
    pack(network, storage, torch.float32)
    x = {"linear": torch.randn(2, 5, 64), "conv": torch.randn(2, 16, 8, 8)}
    for name, layer in network.items():
        assert isinstance(layer, PackedLayer)
        weight, a = layer.unpack(torch.float32), x[name].clone().requires_grad_()
        b = x[name].clone().requires_grad_()
        output = layer(a)
        plain = F.linear(b, weight, layer.bias) if name == "linear" else F.conv2d(b, weight, layer.bias, 2, 1)
        torch.testing.assert_close(output, plain)
        torch.autograd.backward([output.square().sum(), plain.square().sum()])
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("storage", ["fp32", *ERRORS])
def test_teacher_and_student_share_the_packed_weights(
    storage: str, precision: str, model: Model, tmp_path: Path
) -> None:
    config = config_of(tmp_path, frozen_weights=storage, precision=precision)
    method = method_of(config)(model, config)
    batch, levels = (
        Latents().batch([SampleId(0, 0, 0), SampleId(0, 0, 1)], torch.device("cpu")),
        torch.tensor([999, 499]),
    )
    before = {name: x.clone() for name, x in model.unet.state_dict().items()}
    with networks_of(model, config, with_teacher=True) as networks:
        player = method.players(networks)[STUDENT]
        asked = batch.x_0, levels, batch.conditioning
        with torch.no_grad():
            assert torch.equal(player.trainable.module(*asked), networks.teacher(*asked))
        player.loss(player.trainable.module, batch, 0).backward()
        module: nn.Module = player.trainable.module
        trained = {id(p) for p in player.trainable.parameters.values()}
        assert {id(p) for p in module.parameters() if p.grad is not None} == trained
        assert {p.dtype for p in player.trainable.parameters.values()} == {torch.float32}
        assert any(isinstance(layer, PackedLayer) for layer in module.modules()) == (storage != precision)
    after: dict[str, Tensor] = model.unet.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_weights_are_read_in_the_type_that_they_are_kept_in(tmp_path: Path) -> None:
    assert loading_dtype(config_of(tmp_path)) == torch.float32
    assert loading_dtype(config_of(tmp_path, precision="bf16")) == torch.bfloat16
    assert loading_dtype(config_of(tmp_path, frozen_weights="int8")) == torch.bfloat16
    assert loading_dtype(config_of(tmp_path, frozen_weights="fp32", precision="bf16")) == torch.float32
    assert loading_dtype(config_of(tmp_path, full=True, precision="bf16")) == torch.float32


TINY = ["--rank", "4", "--batch-size", "2", "--checkpoint-every", "2", "--log-every", "1", "--device", "cpu"]


@pytest.mark.parametrize(
    "options",
    [["--frozen-weights", "int8"], ["--frozen-weights", "nf4", "--precision", "bf16"], ["--optimizer", "adamw-8bit"]],
    ids=["int8", "nf4", "adamw-8bit"],
)
def test_a_resumed_run_is_bit_equal(fewstep, tiny_model_folder, tiny_data_folder, tmp_path, options) -> None:
    def run(out: Path, steps: int, *more: str) -> None:
        typed = ["--model", str(tiny_model_folder), "--data", str(tiny_data_folder), "--out", str(out)]
        made = fewstep("distill", *typed, "--steps", str(steps), *TINY, *options, *more)
        assert made.code == 0, made.err

    run(tmp_path / "whole", 4)
    run(tmp_path / "resumed", 2)
    run(tmp_path / "resumed", 4, "--resume")
    one, other = ((tmp_path / name / "lora.safetensors").read_bytes() for name in ("whole", "resumed"))
    assert one == other


@pytest.mark.parametrize("typed", [["--frozen-weights", "nf4"], ["--optimizer", "adamw-8bit"]])
def test_a_missing_package_is_named_before_anything_is_read(fewstep, monkeypatch, tmp_path, typed) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    made = fewstep("distill", "--model", "nothing", "--data", "nothing", "--out", str(tmp_path / "run"), *typed)
    assert made.code == 2
    assert made.err.startswith(
        f"error: {' '.join(typed)} needs bitsandbytes, which is not installed\n\nhint: pip install"
    )
