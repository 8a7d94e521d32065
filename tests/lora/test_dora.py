"""DoRA baked against a base: against PEFT's merged weights, and LyCORIS' two conventions."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.linalg import vector_norm

from fewstep.errors import FewstepError
from fewstep.lora.files import load_adapter, open_lora
from fewstep.lora.layers import module_shapes
from fewstep.lora.low_rank import check_fits
from fewstep.models.load import load_model
from tests.sessions import session


class Net(nn.Module):
    """Layers of every kind and of unequal sides, one wide and one tall."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.tall = nn.Linear(9, 5), nn.Linear(4, 7)
        self.conv, self.one = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(self.conv(x))


def base_of(network: nn.Module):
    weights = {name: x.detach().clone() for name, x in network.named_parameters()}
    return lambda name: weights[f"{name}.weight"]


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.mark.parametrize("rslora", [False, True])
def test_pefts_merged_weights(net: Net, rslora: bool, tmp_path: Path) -> None:
    shapes, base = module_shapes(net), base_of(net)
    config = LoraConfig(r=2, lora_alpha=3, target_modules=list(shapes), use_dora=True, use_rslora=rslora)
    theirs = get_peft_model(net, config)
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path)
    merged = theirs.merge_and_unload()
    adapter, _ = load_adapter(tmp_path, shapes, base)
    check_fits(adapter, shapes, "x", "y")
    assert adapter.modules.keys() == shapes.keys()
    for name, update in adapter.modules.items():
        wanted = merged.get_submodule(name).weight - base(name)
        assert update.rank == min(len(wanted), wanted[0].numel())
        assert (update.delta() - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", ["wide", "tall", "conv", "one"])
def test_lycoris_norms_of_outputs_and_of_inputs(net: Net, name: str, axis: int, tmp_path: Path) -> None:
    W0, generator = base_of(net)(name), torch.Generator().manual_seed(1)
    others = [i for i in range(W0.ndim) if i != axis]
    norm = vector_norm(W0, dim=others, keepdim=True)
    m = norm * (0.5 + torch.rand(norm.shape, generator=generator))
    A, B = torch.randn(2, *W0.shape[1:], generator=generator), torch.randn(len(W0), 2, *(1,) * (W0.ndim - 2))
    parts = {"lora_down.weight": A, "lora_up.weight": B, "alpha": torch.tensor(1.0), "dora_scale": m}
    save_file({f"lora_unet_{name}.{part}": x for part, x in parts.items()}, tmp_path / "x.safetensors")
    update = load_adapter(tmp_path / "x.safetensors", module_shapes(net), base_of(net))[0].modules[name]
    W = W0 + 0.5 * (B.flatten(1) @ A.flatten(1)).view_as(W0)
    torch.testing.assert_close(W0 + update.delta(), m * W / vector_norm(W, dim=others, keepdim=True))
    assert update.shape == module_shapes(net)[name]


def test_the_untrained_one_changes_nothing(net: Net, tmp_path: Path) -> None:
    get_peft_model(net, LoraConfig(r=2, target_modules=["wide", "conv"], use_dora=True)).save_pretrained(tmp_path)
    adapter, _ = load_adapter(tmp_path, module_shapes(Net()), base(net))
    assert all(float(update.delta().abs().max()) < 1e-6 for update in adapter.modules.values())


def base(net: Net):
    """The weights under PEFT's layers."""
    return lambda name: getattr(net.get_submodule(name), "base_layer", net.get_submodule(name)).weight.detach()


def test_sampling_bakes_it_against_its_own_model(tiny_model_folder: Path, tmp_path: Path) -> None:
    network = load_model(str(tiny_model_folder)).unet
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    W0, A, B = network.get_submodule(name).weight, torch.ones(1, 32), torch.ones(32, 1)
    parts = {"lora_down.weight": A, "lora_up.weight": B, "dora_scale": torch.ones(32, 1)}
    save_file(
        {f"lora_unet_{name.replace('.', '_')}.{part}": x for part, x in parts.items()}, tmp_path / "x.safetensors"
    )
    opened = session(tiny_model_folder, [f"{tmp_path / 'x.safetensors'}:0.5"])
    W = W0 + B @ A
    wanted = W0 + 0.5 * (W / W.norm(dim=1, keepdim=True) - W0)
    unet = opened.engine.model.unet
    torch.testing.assert_close(unet.get_submodule(name).weight, wanted, check_stride=False)
    opened.plug([f"{tmp_path / 'x.safetensors'}:1"])  # of W0, not of what is plugged in
    rescaled = W / W.norm(dim=1, keepdim=True)
    torch.testing.assert_close(unet.get_submodule(name).weight, rescaled, check_stride=False)


def test_what_is_no_whole_dora_is_refused(net: Net, tmp_path: Path) -> None:
    shapes, weights = module_shapes(net), base_of(net)
    get_peft_model(net, LoraConfig(r=2, target_modules=["wide"], use_dora=True)).save_pretrained(tmp_path)
    assert open_lora(tmp_path).dora == "base_model.model.wide.lora_magnitude_vector"
    with pytest.raises(
        FewstepError, match=r"cannot be used alone: it is a DoRA, .* \(base_model.*lora_magnitude_vector\)"
    ):
        load_adapter(tmp_path, shapes)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if "magnitude" in key)
    save_file(tensors | {key: torch.ones(3)}, file)
    with pytest.raises(FewstepError, match=r"do not fit \(the magnitudes are \(3,\), the weight is \(5, 9\)\)"):
        load_adapter(tmp_path, shapes, weights)[0].modules["wide"]
    save_file({k: x for k, x in tensors.items() if k != key}, file)
    with pytest.raises(FewstepError, match=r"the config calls .*wide a DoRA, but its magnitudes are missing"):
        load_adapter(tmp_path, shapes, weights)[0].modules["wide"]
