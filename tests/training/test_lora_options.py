"""LoRAs with an alpha, with dropout and on chosen modules: the student's alone, and exactly."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from fewstep.configs import FinetuneConfig, build
from fewstep.diffusion.guidance import Conditioning
from fewstep.lora.files import load_adapter
from fewstep.lora.layers import module_shapes
from fewstep.lora.recipe import Recipe
from fewstep.models.load import load_model
from fewstep.models.model import Model
from fewstep.training.dropout import sample_masking
from fewstep.training.networks import STUDENT, LoraNetworks, networks_of
from tests.tiny import tiny_unet

TINY = ["--rank", "2", "--batch-size", "4", "--device", "cpu"]
T = torch.tensor([10.0, 500.0])


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> Model:
    return load_model(str(tiny_model_folder))


def config_of(**options: object) -> FinetuneConfig:
    return build(FinetuneConfig, model="m", data="d", out="o", rank=2, **options)


def inputs(model: Model) -> tuple[Tensor, Tensor, Conditioning]:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), T, model.embed(["a cat", "a dog"])


def student(networks: LoraNetworks) -> torch.nn.Module:
    """The student, with a B that is not 0."""
    trainable = networks.trainable(STUDENT)
    with torch.no_grad():
        for name, parameter in trainable.parameters.items():
            if name.endswith("B"):
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    trainable.averages["export"].shadow.update({n: p.detach().clone() for n, p in trainable.parameters.items()})
    return trainable.module


def test_alpha_scales_what_the_lora_adds_in_training_and_in_the_file(model: Model, tmp_path: Path) -> None:
    """A file whose B holds the scale draws as the trained network did, and training goes on from it unchanged."""
    outputs = {}
    for alpha in (None, 6.0):
        with networks_of(model, config_of(lora_alpha=alpha), False) as networks:
            outputs[alpha] = student(networks)(*inputs(model)).detach()
            torch.testing.assert_close(networks.network(STUDENT)(*inputs(model)), outputs[alpha])
            networks.export(tmp_path / str(alpha), Recipe(method="denoising"))
    files = [
        load_adapter(tmp_path / str(alpha) / "lora.safetensors", module_shapes(model.unet))[0] for alpha in outputs
    ]
    for name, update in files[0].modules.items():
        torch.testing.assert_close(files[1].modules[name].delta(), 3 * update.delta(), rtol=2e-3, atol=1e-4)
    again = config_of(lora_alpha=6.0, init_lora=tmp_path / "6.0" / "lora.safetensors")
    with networks_of(model, again, False) as networks:
        networks.trainable(STUDENT)
        torch.testing.assert_close(networks.network(STUDENT)(*inputs(model)), outputs[6.0], rtol=5e-3, atol=5e-4)


def test_dropout_is_the_students_alone_and_the_same_for_a_sample_in_any_batch(model: Model) -> None:
    x, t, conditioning = inputs(model)
    with networks_of(model, config_of(lora_dropout=0.5), False) as networks:
        module, whole = student(networks), networks.network(STUDENT)
        with torch.no_grad():
            masked = module(x, t, conditioning)
            assert not torch.allclose(masked, whole(x, t, conditioning))
            assert torch.equal(module(x, t, conditioning), masked)
            alone = module(x[1:], t[1:], conditioning._replace(text=conditioning.text[1:]))
            torch.testing.assert_close(alone, masked[1:])
            networks.layers.switch, networks.layers.masking = (), None
            bare = networks.teacher(x, t, conditioning)
            module(x, t, conditioning)
            assert torch.equal(networks.teacher(x, t, conditioning), bare)
    with networks_of(model, config_of(), False) as networks:
        module = student(networks)
        assert torch.equal(module(x, t, conditioning), networks.network(STUDENT)(x, t, conditioning))


def test_checkpointing_draws_the_same_masks_again(model: Model) -> None:
    gradients = []
    for checkpointing in (False, True):
        config = config_of(lora_dropout=0.5, gradient_checkpointing=checkpointing)
        with networks_of(model, config, False) as networks:
            module = student(networks)
            model.unet.train(checkpointing)
            module(*inputs(model)).square().mean().backward()
            gradients.append([p.grad for p in networks.layers.parameters_of(STUDENT).values()])
            model.unet.eval().disable_gradient_checkpointing()
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_a_mask_drops_its_share_of_features_in_all_places_and_keeps_the_mean() -> None:
    x = torch.randn(3, 4, 8, 8)
    masked = sample_masking(x, 0.25, seed=0)
    for ones in (torch.ones(3, 4000, 2, 2), torch.ones(3, 5, 4000)):
        found = masked("layer", ones)
        values, counts = found.unique(return_counts=True)
        assert values.tolist() == pytest.approx([0, 1 / 0.75])
        assert float(counts[0] / counts.sum()) == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 12000))
        across = found.flatten(2) if ones.ndim == 4 else found.transpose(1, 2)
        assert torch.equal(across, across[..., :1].expand_as(across))
    features = torch.ones(3, 4000)
    assert not torch.equal(masked("layer", features)[0], masked("layer", features)[1])
    assert not torch.equal(masked("layer", features), masked("another layer", features))
    assert not torch.equal(masked("layer", features), sample_masking(x, 0.25, seed=1)("layer", features))


def adapted(path: Path) -> set[str]:
    with safe_open(path / "lora.safetensors", "pt") as file:
        return {key.split(".")[0] for key in file.keys()}  # noqa: SIM118


def test_modules_are_chosen_by_the_ends_of_their_names(fewstep, tiny_model_folder, tiny_data_folder, tmp_path):
    common = {"model": tiny_model_folder, "data": tiny_data_folder, "steps": 1}
    done = fewstep("finetune", *TINY, **common, out=tmp_path / "a", modules="attn2.to_k,conv_in")
    assert done.code == 0, done.err
    names = [name for name in module_shapes(tiny_unet()) if name.endswith("attn2.to_k") or name == "conv_in"]
    assert len(names) > 2
    assert adapted(tmp_path / "a") == {"lora_unet_" + name.replace(".", "_") for name in names}
    done = fewstep("finetune", *TINY, **common, out=tmp_path / "b", modules="cross-attention,to_z")
    assert done.code == 2
    assert re.match(r"--modules to_z: the network of .* has no such layers$", done.error)
    assert not (tmp_path / "b").exists()


def test_epochs_are_steps_in_the_run_and_its_recipe(fewstep, tiny_model_folder, tiny_data_folder, tmp_path):
    common = {"model": tiny_model_folder, "data": tiny_data_folder, "out": tmp_path / "run", "log_every": 1}
    done = fewstep("finetune", *TINY, **common, epochs=2)
    assert done.code == 0, done.err
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]  # 2 x 6 images, 4 at a time
    recipe = json.loads(fewstep("inspect", tmp_path / "run", "--json").out)
    assert recipe["sampling"]["method"] == "denoising"
    done = fewstep("finetune", *TINY, "--resume", **common, epochs=3)
    assert done.code == 0, done.err
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 5
