"""The LoRA of two checkpoints: what was added comes back."""

import pytest
import torch
from hypothesis import given, settings

from fewstep.errors import FewstepError
from fewstep.families import ModuleShape
from fewstep.lora.difference import difference, truncated_svd
from tests.lora.updates import distance, random_update, ranks, seeds, shapes

SIX = {"x": ModuleShape(6, 6, 0)}
laws = settings(deadline=None, max_examples=30)


def weights(shapes: dict[str, ModuleShape], seed: int = 0) -> dict[str, torch.Tensor]:
    return {name: random_update(shape, 4, seed, torch.float32).delta() for name, shape in shapes.items()}


@laws
@given(shapes, ranks, seeds)
def test_an_update_comes_back_at_its_rank(shape: ModuleShape, rank: int, seed: int) -> None:
    update = random_update(shape, rank, seed, torch.float32)
    base = weights({"x": shape}, seed + 1)
    found, loss = difference({"x": base["x"] + update.delta()}.__getitem__, base.__getitem__, {"x": shape}, rank)
    scale = float(update.delta().norm() + base["x"].norm() * 1e-2)  # what the sum itself is rounded to
    assert found["x"].rank <= rank
    assert found["x"].shape == shape
    assert distance(found["x"], update) <= 1e-5 * scale
    assert loss.worst * float(update.delta().norm()) <= 1e-5 * scale


def test_a_direction_a_ten_thousandth_as_strong_is_kept() -> None:
    torch.manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(6, 6)).Q for _ in range(2))
    S = torch.tensor([10.0, 8.0, 5.0, 3.0, 1.0, 1e-3])
    found, _ = difference({"x": U @ S.diag() @ V}.__getitem__, {"x": torch.zeros(6, 6)}.__getitem__, SIX, 6)
    assert found["x"].rank == 6
    assert (found["x"].delta() - U @ S.diag() @ V).norm() < 1e-5 * S.norm()


@pytest.mark.parametrize("shape", [ModuleShape(200, 220, 0), ModuleShape(160, 30, 3)])
@pytest.mark.parametrize("rank", [4, 60])  # by a sketch, by the exact SVD
def test_an_update_of_a_large_module_comes_back(shape: ModuleShape, rank: int) -> None:
    update = random_update(shape, rank, 0, torch.float32)
    base = weights({"x": shape}, 1)
    found, loss = difference({"x": base["x"] + update.delta()}.__getitem__, base.__getitem__, {"x": shape}, rank)
    assert distance(found["x"], update) <= 1e-5 * float(update.delta().norm())
    assert loss.worst <= 1e-5


def test_the_sketch_is_nearly_the_best_approximation() -> None:
    noise = torch.randn(320, 500, generator=torch.Generator().manual_seed(0))
    decaying = torch.linalg.svd(noise, full_matrices=False)
    decaying = decaying.U @ torch.diag(torch.arange(1, 321) ** -0.5) @ decaying.Vh
    for matrix, within in ((noise, 1.01), (decaying, 1.001)):
        U, S, Vh = (x.double() for x in truncated_svd(matrix, 40))
        best = torch.linalg.svdvals(matrix.double())[40:].norm()
        assert len(S) == 72
        assert (matrix - U[:, :40] @ torch.diag(S[:40]) @ Vh[:40]).norm() <= within * best


def test_the_sketch_is_the_same_every_time_and_leaves_torchs_generator_alone() -> None:
    matrix, state = torch.randn(200, 200), torch.get_rng_state()
    first, second = truncated_svd(matrix, 4), truncated_svd(matrix, 4)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kernel", [0, 1, 3])
def test_the_loss_is_that_of_the_whole_difference(kernel: int) -> None:
    shapes = {"x": ModuleShape(12, 10, kernel), "y": ModuleShape(8, 9, kernel)}
    tuned, base = weights(shapes, 0), weights(shapes, 1)
    found, loss = difference(tuned.__getitem__, base.__getitem__, shapes, 3)
    whole = {name: (tuned[name] - base[name]).double() for name in shapes}
    errors = {name: float((whole[name] - found[name].delta()).norm() / whole[name].norm()) for name in shapes}
    best = {n: torch.linalg.svdvals(w.flatten(1))[3:].norm() / w.norm() for n, w in whole.items()}
    assert errors == pytest.approx({name: float(value) for name, value in best.items()}, rel=1e-5)
    assert (loss.worst, loss.mean) == pytest.approx((max(errors.values()), sum(errors.values()) / 2), rel=1e-5)
    assert loss.worst_module == max(errors, key=errors.__getitem__)


def test_energy_keeps_its_share() -> None:
    shapes = {"x": ModuleShape(12, 10, 3)}
    tuned, base = weights(shapes, 0), weights(shapes, 1)
    found, loss = difference(tuned.__getitem__, base.__getitem__, shapes, energy=0.9)
    assert loss.energy >= 0.9
    assert difference(tuned.__getitem__, base.__getitem__, shapes, found["x"].rank - 1)[1].energy < 0.9
    assert difference(tuned.__getitem__, base.__getitem__, shapes)[1].energy == pytest.approx(1, abs=1e-9)


def test_modules_that_do_not_differ_are_left_out_and_half_precision_is_read() -> None:
    shapes = {"same": ModuleShape(4, 5, 0), "other": ModuleShape(4, 5, 0)}
    base = {name: weight.half() for name, weight in weights(shapes).items()}
    tuned = base | {"other": base["other"] + 1}
    found, loss = difference(tuned.__getitem__, base.__getitem__, shapes, rank=1)
    assert list(found) == ["other"]
    assert found["other"].A.dtype == torch.float32
    assert loss.worst_module == "other"
    assert difference(base.__getitem__, base.__getitem__, shapes, rank=1) == ({}, (1.0, 0.0, 0.0, ""))


def test_weights_of_another_shape_are_refused() -> None:
    shapes = {"x": ModuleShape(4, 5, 3)}
    right, wrong = weights(shapes), {"x": torch.zeros(4, 5)}
    with pytest.raises(FewstepError, match="x is 4 x 5 in the base checkpoint, not 4 x 5 x 3 x 3"):
        difference(right.__getitem__, wrong.__getitem__, shapes, 1)
