"""LoRA files: round trips, the original layout, what is refused."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fewstep.errors import FewstepError
from fewstep.lora.files import load_adapter
from fewstep.lora.layers import initial, module_shapes, target_shapes
from fewstep.lora.low_rank import Adapter, LowRank, check_fits, combine, linear_combination
from fewstep.lora.recipe import Recipe
from fewstep.lora.writing import save_adapter
from fewstep.models.references import parse_reference
from tests.tiny import tiny_unet

RECIPE = Recipe(method="lcd", solver="lcm", steps=4, guidance_scale=1.0, k=20, teacher_guidance_scale=(8.5, 8.5))


@pytest.fixture(scope="module")
def unet() -> torch.nn.Module:
    return tiny_unet()


@pytest.fixture
def adapter(unet: torch.nn.Module) -> Adapter:
    torch.manual_seed(0)
    updates = initial(target_shapes(unet), 4, seed=0)
    return Adapter({name: LowRank(u.A, torch.randn_like(u.B)) for name, u in updates.items()})


def test_a_saved_adapter_comes_back_with_its_recipe(unet, adapter, tmp_path: Path) -> None:
    save_adapter(tmp_path / "lora.safetensors", adapter, RECIPE, torch.float32)
    back, recipe = load_adapter(tmp_path / "lora.safetensors", module_shapes(unet))
    assert recipe == RECIPE
    assert back.modules.keys() == adapter.modules.keys()
    for name, update in adapter.modules.items():
        assert torch.equal(back.modules[name].A, update.A)
        assert torch.equal(back.modules[name].B, update.B)


def test_the_file_has_the_layout_of_the_original_lcm_lora(adapter, tmp_path: Path) -> None:
    save_adapter(tmp_path / "lora.safetensors", adapter, RECIPE)
    tensors = load_file(tmp_path / "lora.safetensors")
    key = "lora_unet_down_blocks_0_resnets_0_conv1"
    assert tensors[f"{key}.lora_down.weight"].shape == (4, 16, 3, 3)
    assert tensors[f"{key}.lora_up.weight"].shape == (16, 4, 1, 1)
    assert float(tensors[f"{key}.alpha"]) == 4
    assert len(tensors) == 3 * len(adapter.modules)
    assert {t.dtype for t in tensors.values()} == {torch.float16}


def test_saving_twice_gives_the_same_bytes(adapter, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_adapter(tmp_path / name, adapter, RECIPE)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_alpha_over_rank_scales_the_update(unet, tmp_path: Path) -> None:
    key = "lora_unet_down_blocks_0_resnets_0_time_emb_proj"
    down, up = torch.randn(4, 64), torch.randn(16, 4)
    save_file(
        {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(2.0)},
        tmp_path / "a.safetensors",
    )
    adapter, recipe = load_adapter(tmp_path / "a.safetensors", module_shapes(unet))
    assert recipe is None
    torch.testing.assert_close(adapter.modules["down_blocks.0.resnets.0.time_emb_proj"].delta(), 0.5 * up @ down)


def test_a_lora_of_another_shape_does_not_fit(unet, adapter) -> None:
    with pytest.raises(FewstepError, match=r"LoRA x does not fit y: 0 of \d+ modules match"):
        check_fits(adapter, module_shapes(tiny_unet(block_out_channels=(8, 24))), "x", "y")


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [("a.safetensors", "a.safetensors", 1.0), ("a:0.8", "a", 0.8), ("C:/x/a", "C:/x/a", 1.0), ("a:-1", "a", -1.0)],
)
def test_a_weight_is_what_stands_after_the_last_colon_if_it_is_a_number(text, path, weight) -> None:
    assert parse_reference(text) == (Path(path), weight, {})


@settings(deadline=None, max_examples=30)
@given(
    weights=st.lists(st.floats(-2, 2), min_size=1, max_size=3),
    kernel=st.sampled_from([0, 1, 3]),
    ranks=st.lists(st.integers(1, 5), min_size=3, max_size=3),
)
def test_a_linear_combination_is_linear_in_delta_w(weights: list[float], kernel: int, ranks: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    k, one = ((kernel, kernel), (1, 1)) if kernel else ((), ())
    terms = [(w, LowRank(draw(r, 6, *k), draw(7, r, *one))) for w, r in zip(weights, ranks, strict=False)]
    total = sum(w * u.delta() for w, u in terms)
    torch.testing.assert_close(linear_combination(terms).delta(), total, rtol=1e-12, atol=1e-12)


def test_combining_adapters_takes_the_union_of_their_modules() -> None:
    a = Adapter({"x": LowRank(torch.randn(2, 3), torch.randn(4, 2))})
    b = Adapter(
        {"x": LowRank(torch.randn(1, 3), torch.randn(4, 1)), "y": LowRank(torch.randn(1, 3), torch.randn(4, 1))}
    )
    both = combine([(1.0, a), (-2.0, b)])
    torch.testing.assert_close(both["x"].delta(), a.modules["x"].delta() - 2 * b.modules["x"].delta())
    torch.testing.assert_close(both["y"].delta(), -2 * b.modules["y"].delta())
