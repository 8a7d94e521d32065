"""Low-rank updates at a smaller rank, and the loss."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import qr, svd

from fewstep.errors import UsageError
from fewstep.events import doing
from fewstep.families import ModuleShape
from fewstep.lora.low_rank import LowRank, linear_combination, squared_norm


class RankLoss(NamedTuple):
    """The loss of an approximation of updates. A module's error is ||Delta W - kept||_F / ||Delta W||_F."""

    energy: float  # kept share over all modules: 1 - sum of squared errors / sum of squared norms
    mean: float  # mean error of the modules
    worst: float  # largest error of a module
    worst_module: str  # name of the module with the largest error; empty when there are no modules

    @classmethod
    def of(cls, squares: Mapping[str, tuple[float, float]]) -> "RankLoss":
        """The loss, from each module's squared norm and squared error. Where the norm is 0, an error is infinite."""
        errors = {name: _relative(norm, error) for name, (norm, error) in squares.items()}
        if not errors:
            return cls(1.0, 0.0, 0.0, "")
        norms, lost = (sum(column) for column in zip(*squares.values(), strict=True))
        worst = max(errors, key=errors.__getitem__)
        return cls(1 - _relative(norms, lost) ** 2, sum(errors.values()) / len(errors), errors[worst], worst)


def _relative(squared_norm: float, squared_error: float) -> float:
    if squared_error == 0:
        return 0.0
    return float("inf") if squared_norm == 0 else (squared_error / squared_norm) ** 0.5


@doing("cutting the ranks by SVD")
def compress(
    modules: Mapping[str, LowRank], rank: int | None = None, energy: float | None = None
) -> tuple[dict[str, LowRank], RankLoss]:
    """Every module's update, `compressed`, and the loss. Each module keeps the share `energy` of its own norm."""
    kept = {name: compressed(update, rank, energy) for name, update in modules.items()}
    return kept, loss(modules, kept)


def compressed(update: LowRank, rank: int | None = None, energy: float | None = None) -> LowRank:
    """The best low-rank approximation of Delta W in the Frobenius norm (Eckart and Young 1936), in the update's dtype.

    rank: the largest rank; None = no limit. energy: the share of ||Delta W||_F^2 to keep, in (0, 1], with the smallest
    rank that keeps it; None = all, so that only directions which add nothing are dropped. The rank never grows. An
    update of zeros keeps rank 1, because files have no rank 0. A product B A takes two QR factorisations and the SVD
    of their small core, min(out, R) x min(in k k, R), in float64.
    """
    check_limits(rank, energy)
    q_B, r_B = qr(update.B.flatten(1).double())
    q_A, r_A = qr(update.A.flatten(1).double().T)
    U, S, Vh = svd(r_B @ r_A.T, full_matrices=False)
    count = kept_rank(S, float(S.square().sum()), rank, energy)
    factors = balanced(q_B @ U[:, :count], S[:count], Vh[:count] @ q_A.T, update.shape)
    return LowRank(*(factor.to(update.A.dtype) for factor in factors))


def check_limits(rank: int | None, energy: float | None) -> None:
    """Raise UsageError for a rank below 1 or an energy outside (0, 1]. None is allowed for both."""
    if rank is not None and rank < 1:
        raise UsageError(f"rank {rank} is less than 1", "give the largest rank that a module may keep, such as 64")
    if energy is not None and not 0 < energy <= 1:
        raise UsageError(f"energy {energy} is not in (0, 1]", "give the share to keep, such as 0.99")


def kept_rank(S: Tensor, total: float, rank: int | None, energy: float | None) -> int:
    """How many of the singular values S (descending) to keep: at least 1, at most `rank`, enough for `energy`.

    total: the sum of all squared values. energy None or 1 keeps every value that is larger than rounding error
    relative to the largest one. It does not use the sum of squares, in which small values are lost.
    """
    if energy is None or energy == 1:
        count = max(int((S[0] * torch.finfo(S.dtype).eps < S).sum()), 1)
    else:
        kept = S.double().square().cumsum(0)
        count = int((kept < min(energy * total, float(kept[-1]))).sum()) + 1
    return count if rank is None else min(count, rank)


def balanced(U: Tensor, S: Tensor, Vh: Tensor, shape: ModuleShape) -> LowRank:
    """U diag(S) Vh as two factors of equal norms, with sqrt(S) in each. Neither is so small that fp16 is too coarse.

    U: (out, R), S: (R,), Vh: (R, in k k).
    """
    root = S.sqrt()
    kernel, one = ((shape.kernel, shape.kernel), (1, 1)) if shape.kernel else ((), ())
    A = (root[:, None] * Vh).reshape(-1, shape.in_, *kernel)
    return LowRank(A.contiguous(), (U * root).reshape(shape.out, -1, *one).contiguous())


def loss(full: Mapping[str, LowRank], kept: Mapping[str, LowRank]) -> RankLoss:
    """The loss of `kept` against `full`, computed from the factors alone. A module that `kept` lacks is lost whole."""
    assert kept.keys() <= full.keys()
    squares = {}
    for name, update in full.items():
        norm = squared_norm(update)
        error = squared_norm(linear_combination([(1.0, update), (-1.0, kept[name])])) if name in kept else norm
        squares[name] = (norm, error)
    return RankLoss.of(squares)
