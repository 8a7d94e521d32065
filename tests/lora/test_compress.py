"""Compression against the SVD of the whole Delta W, and its losses against dense norms."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewstep.errors import UsageError
from fewstep.families import ModuleShape
from fewstep.lora.compress import RankLoss, compress, compressed, loss, squared_norm
from fewstep.lora.low_rank import LowRank, linear_combination
from tests.lora.updates import distance, random_update, ranks, seeds, shapes

laws = settings(deadline=None, max_examples=30)


def singular_values(update: LowRank) -> Tensor:
    return torch.linalg.svdvals(update.delta().flatten(1).double())


@laws
@given(shapes, ranks, st.integers(1, 12), seeds)
def test_the_error_is_the_tail_of_the_singular_values(shape: ModuleShape, full: int, rank: int, seed: int) -> None:
    update = random_update(shape, full, seed)
    S, kept = singular_values(update), compressed(update, rank)
    assert kept.shape == shape
    assert kept.rank <= min(rank, full, len(S))
    assert distance(update, kept) == pytest.approx(float(S[rank:].norm()), abs=1e-7 * float(S.norm()))


@laws
@given(shapes, ranks, seeds)
def test_nothing_is_lost_at_the_full_rank(shape: ModuleShape, rank: int, seed: int) -> None:
    update = random_update(shape, rank, seed, torch.float32)
    for kept in (compressed(update), compressed(update, rank), compressed(update, energy=1.0)):
        assert kept.A.dtype == kept.B.dtype == torch.float32
        assert kept.rank <= rank
        assert distance(update, kept) <= 1e-6 * float(update.delta().norm())


@laws
@given(shapes, ranks, st.floats(0.01, 1), seeds)
def test_energy_keeps_its_share_at_the_smallest_rank(shape: ModuleShape, rank: int, energy: float, seed: int) -> None:
    update = random_update(shape, rank, seed)
    kept, total = compressed(update, energy=energy), float(singular_values(update).square().sum())
    assert float(kept.delta().square().sum()) >= (energy - 1e-12) * total
    if kept.rank > 1:
        assert float(compressed(update, kept.rank - 1).delta().square().sum()) < energy * total


@laws
@given(shapes, ranks, st.lists(st.floats(0.01, 1), min_size=2, max_size=4), seeds)
def test_more_energy_never_takes_a_smaller_rank(shape: ModuleShape, rank: int, energies: list, seed: int) -> None:
    update = random_update(shape, rank, seed)
    found = [compressed(update, energy=energy).rank for energy in sorted(energies)]
    assert found == sorted(found)
    assert all(
        compressed(update, 2, energy).rank == min(2, r) for energy, r in zip(sorted(energies), found, strict=True)
    )


@laws
@given(shapes, ranks, seeds)
def test_the_factors_share_the_norm(shape: ModuleShape, rank: int, seed: int) -> None:
    A, B = (factor.flatten(1) for factor in compressed(random_update(shape, rank, seed)))
    S = torch.diag(A @ A.T)
    torch.testing.assert_close(A @ A.T, torch.diag(S), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(B.T @ B, torch.diag(S), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kernel", [0, 1, 3])
def test_an_update_of_zeros_keeps_rank_1_of_zeros(kernel: int) -> None:
    update = random_update(ModuleShape(4, 5, kernel), 3, 0)
    kept = compressed(LowRank(update.A, torch.zeros_like(update.B)), energy=0.9)
    assert kept.rank == 1
    assert not any(factor.any() for factor in kept)


def test_what_adds_nothing_is_dropped() -> None:
    update = random_update(ModuleShape(20, 30, 0), 3, 0, torch.float32)
    twice = linear_combination([(1.0, update), (0.5, update)])
    assert compressed(twice).rank == 3
    assert compressed(linear_combination([(1.0, update), (-1.0, update)]), energy=0.5).rank <= 3


def test_small_values_survive_fp16() -> None:
    update = random_update(ModuleShape(20, 30, 0), 3, 0, torch.float32)
    lopsided = LowRank(update.A, 1e-8 * update.B)  # zero in fp16
    stored = LowRank(*(factor.half().float() for factor in compressed(lopsided)))
    assert distance(lopsided, stored) < 1e-3 * float(lopsided.delta().norm())


@pytest.mark.parametrize(("rank", "energy", "said"), [(0, None, "rank 0"), (None, 0.0, "energy 0.0"), (1, 1.5, "1.5")])
def test_wishes_out_of_range_are_refused(rank: int | None, energy: float | None, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        compressed(random_update(ModuleShape(2, 2, 0), 1, 0), rank, energy)


@laws
@given(st.lists(st.tuples(shapes, ranks), min_size=1, max_size=4), st.integers(1, 6), seeds)
def test_the_loss_is_the_dense_one(drawn: list, rank: int, seed: int) -> None:
    full = {str(i): random_update(shape, r, seed + i) for i, (shape, r) in enumerate(drawn)}
    kept, found = compress(full, rank)
    squares = {n: (float(u.delta().square().sum()), distance(u, kept[n]) ** 2) for n, u in full.items()}
    expected = RankLoss.of(squares)
    assert found[:3] == pytest.approx(expected[:3], abs=1e-7)
    assert squares[found.worst_module][1] == pytest.approx(expected.worst**2 * squares[found.worst_module][0], abs=1e-7)


def test_a_loss_counts_lost_modules_and_names_the_worst() -> None:
    full = {name: random_update(ModuleShape(5, 6, 0), 2, seed) for seed, name in enumerate("abc")}
    found = loss(full, {"a": full["a"], "b": LowRank(full["b"].A, 0.5 * full["b"].B)})
    norms = {name: float(update.delta().square().sum()) for name, update in full.items()}
    assert (found.worst, found.worst_module) == (1.0, "c")
    assert found.mean == pytest.approx(0.5)
    assert found.energy == pytest.approx(1 - (0.25 * norms["b"] + norms["c"]) / sum(norms.values()))
    assert loss({}, {}) == (1.0, 0.0, 0.0, "")
    zero = {"z": LowRank(torch.zeros(1, 2), torch.zeros(2, 1))}
    assert loss(zero, zero)[:3] == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("size", [1e-2, 1e-5, 1e-9, 1e-13])
def test_norms_of_near_cancellation_keep_their_digits(size: float) -> None:
    update, other = (random_update(ModuleShape(40, 50, 0), 4, seed) for seed in (0, 1))
    difference = linear_combination([(1.0, update), (-1.0, update), (size, other)])
    assert squared_norm(difference) ** 0.5 == pytest.approx(size * float(other.delta().norm()), rel=1e-15 / size + 1e-8)
