"""LoRA layers: counts of the report, equality with PEFT, switching, folding."""

import math

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from fewstep.configs import Modules
from fewstep.families import FAMILIES, TARGET_SUFFIXES, ModuleShape, family_of
from fewstep.lora.layers import LoraLayers, initial, layers_of, module_shapes, target_shapes
from fewstep.lora.low_rank import LowRank
from tests.lora.updates import fold
from tests.tiny import tiny_unet

REPORT = {"sd15": 67_252_224, "ssd-1b": 104_902_656, "sdxl": 196_751_360}  # Table 1: 67.5 M, 105 M, 197 M


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return tiny_unet().double().eval().requires_grad_(False)


def call(unet: nn.Module, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64)
    text = torch.randn(2, 5, 16, generator=generator, dtype=torch.float64)
    return unet(x, torch.tensor([10, 900]), encoder_hidden_states=text).sample


def random_updates(unet: nn.Module, rank: int, seed: int = 0) -> dict[str, LowRank]:
    torch.manual_seed(seed)
    updates = initial(target_shapes(unet), rank, seed)
    return {name: LowRank(u.A.double(), torch.randn_like(u.B).double() * 0.1) for name, u in updates.items()}


@pytest.mark.parametrize("name", REPORT)
def test_parameter_counts_at_rank_64_are_the_reports(name: str) -> None:
    assert sum(shape.lora_parameters(64) for shape in FAMILIES[name].modules().values()) == REPORT[name]


@pytest.mark.parametrize("name", FAMILIES)
def test_family_tables_equal_the_unet_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        network = UNet2DConditionModel(**FAMILIES[name].unet)
        layers = LoraLayers(network)
        layers.add("student", {n: LowRank(*meta_factors(s)) for n, s in target_shapes(network).items()}, trainable=True)
    assert target_shapes(network) == FAMILIES[name].modules()
    assert family_of(module_shapes(network)) == name
    if name in REPORT:
        assert sum(p.numel() for p in layers.parameters()) == REPORT[name]


def meta_factors(shape: ModuleShape) -> tuple[torch.Tensor, torch.Tensor]:
    kernel = (shape.kernel,) * 2 if shape.kernel else ()
    ones = (1,) * len(kernel)
    return torch.empty(64, shape.in_, *kernel, device="meta"), torch.empty(shape.out, 64, *ones, device="meta")


def test_the_tiny_unet_has_all_14_targets(unet: nn.Module) -> None:
    assert {s for s in TARGET_SUFFIXES if any(f".{n}".endswith(f".{s}") for n in target_shapes(unet))} == set(
        TARGET_SUFFIXES
    )


def test_a_lora_may_adapt_transformer_blocks_or_their_attention_alone(unet: nn.Module) -> None:
    kinds: tuple[Modules, ...] = ("all", "transformer", "attention", "cross-attention")
    everything, blocks, attention, cross = (set(target_shapes(unet, which)) for which in kinds)
    assert cross < attention < blocks < everything
    assert cross == {name for name in attention if ".attn2." in name}
    assert {name.rsplit(".", 1)[-1] for name in attention} == {"to_q", "to_k", "to_v", "0"}
    assert not any("resnets" in name or "samplers" in name for name in blocks)
    assert len(blocks) - len(attention) == 4 * sum(name.endswith("attn1.to_q") for name in attention)  # ff, proj


def test_layers_equal_peft(unet: nn.Module) -> None:
    updates = random_updates(unet, rank=3)
    layers = LoraLayers(unet)
    layers.add("a", updates)
    with layers.using(("a", 1.0)):
        ours = call(unet)
    layers.remove()

    torch.manual_seed(0)
    theirs = tiny_unet().double().eval()
    theirs.load_state_dict(unet.state_dict())
    inject_adapter_in_model(LoraConfig(r=3, lora_alpha=3, target_modules=list(updates)), theirs)
    with torch.no_grad():
        for name, module in theirs.named_modules():
            if hasattr(module, "lora_A"):
                module.lora_A["default"].weight.copy_(updates[name].A)
                module.lora_B["default"].weight.copy_(updates[name].B)
    torch.testing.assert_close(ours, call(theirs), rtol=1e-10, atol=1e-12)


def test_gradients_equal_pefts_and_only_a_and_b_have_them(unet: nn.Module) -> None:
    updates = random_updates(unet, rank=2)
    layers = LoraLayers(unet)
    layers.add("student", updates, trainable=True)
    layers.switch = (("student", 1.0),)
    call(unet).square().sum().backward()
    ours = {name: p.grad for name, p in layers.parameters_of("student").items()}
    layers.remove()
    assert all(p.grad is None for p in unet.parameters())

    theirs = tiny_unet().double().eval()
    theirs.load_state_dict(unet.state_dict())
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, target_modules=list(updates)), theirs)
    for name, module in theirs.named_modules():
        if hasattr(module, "lora_A"):
            module.lora_A["default"].weight.data.copy_(updates[name].A)
            module.lora_B["default"].weight.data.copy_(updates[name].B)
    call(theirs).square().sum().backward()
    for name, module in theirs.named_modules():
        if hasattr(module, "lora_A"):
            torch.testing.assert_close(ours[f"{name}/A"], module.lora_A["default"].weight.grad, rtol=1e-8, atol=1e-10)
            torch.testing.assert_close(ours[f"{name}/B"], module.lora_B["default"].weight.grad, rtol=1e-8, atol=1e-10)


def test_switching_off_is_the_bare_network_and_weights_scale(unet: nn.Module) -> None:
    bare = call(unet)
    layers = LoraLayers(unet)
    layers.add("a", random_updates(unet, 2, seed=1))
    layers.add("b", random_updates(unet, 4, seed=2))
    layers.switch = (("a", 1.0),)
    with layers.using():
        assert torch.equal(call(unet), bare)
    assert not torch.equal(call(unet), bare)
    with layers.using(("a", 0.0), ("b", 0.0)):
        assert torch.equal(call(unet), bare)
    layers.remove()
    assert torch.equal(call(unet), bare)


def test_folding_equals_the_live_sum_of_adapters(unet: nn.Module) -> None:
    a, b = random_updates(unet, 2, seed=1), random_updates(unet, 4, seed=2)
    layers = LoraLayers(unet)
    layers.add("a", a)
    layers.add("b", b)
    with layers.using(("a", 0.8), ("b", -0.5)):
        live = call(unet)
    layers.remove()
    folded = tiny_unet().double().eval()
    folded.load_state_dict(unet.state_dict())
    fold(layers_of(folded), [(0.8, a), (-0.5, b)])
    torch.testing.assert_close(call(folded), live, rtol=1e-4, atol=1e-5)  # the fold computes in float32


def test_a_fresh_lora_changes_nothing_and_starts_as_torch_layers_do(unet: nn.Module) -> None:
    shapes = target_shapes(unet)
    updates = initial(shapes, 8, seed=0)
    assert all(not u.B.any() for u in updates.values())
    for name, shape in shapes.items():
        bound = 1 / math.sqrt(shape.in_ * max(shape.kernel, 1) ** 2)
        assert 0.8 * bound < updates[name].A.abs().max() <= bound
