"""The difference of two checkpoints as a LoRA, at low rank."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.linalg import qr, svd

from fewstep.errors import FewstepError
from fewstep.events import doing
from fewstep.families import ModuleShape
from fewstep.lora.compress import RankLoss, balanced, check_limits, kept_rank
from fewstep.lora.low_rank import LowRank

Read = Callable[[str], Tensor]  # dotted module name -> its weight, (out, in) or (out, in, k, k)

OVERSAMPLING = 32  # columns of the sketch beyond the rank
ITERATIONS = 4  # power iterations of the sketch
SMALL = 4  # a sketch is used only when the matrix's smaller side is at least this many times the sketch's


@doing("taking the difference of the models")
def difference(
    tuned: Read, base: Read, shapes: Mapping[str, ModuleShape], rank: int | None = None, energy: float | None = None
) -> tuple[dict[str, LowRank], RankLoss]:
    """W_tuned - W_base of every module, as updates in float32, and the loss against the whole differences.

    One module is read at a time. Modules that do not differ are left out, in the loss too. rank, energy: as in
    `compressed`. The SVD is exact unless the rank is small relative to the matrix: see `truncated_svd`.
    """
    check_limits(rank, energy)
    updates, squares = {}, {}
    for name, shape in shapes.items():
        delta = _weight(tuned, name, shape, "tuned") - _weight(base, name, shape, "base")
        if not delta.any():
            continue
        total = float(delta.double().square().sum())
        U, S, Vh = truncated_svd(delta, rank)
        count = kept_rank(S, total, rank, energy)
        updates[name] = balanced(U[:, :count], S[:count], Vh[:count], shape)
        A, B = (factor.flatten(1) for factor in updates[name])
        squares[name] = (total, float((delta - B @ A).double().square().sum()))
    return updates, RankLoss.of(squares)


def _weight(read: Read, name: str, shape: ModuleShape, which: str) -> Tensor:
    """The weight as a float32 matrix (out, in k k)."""
    weight = read(name)
    whole = (shape.out, shape.in_, shape.kernel, shape.kernel) if shape.kernel else (shape.out, shape.in_)
    if weight.shape != whole:
        found, expected = (" x ".join(map(str, size)) for size in (weight.shape, whole))
        raise FewstepError(
            f"{name} is {found} in the {which} checkpoint, not {expected}",
            "take the difference of two checkpoints of the same architecture",
        )
    return weight.float().flatten(1)


def truncated_svd(matrix: Tensor, rank: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, q), S (q,), Vh (q, n) of an (m, n) matrix, with at least `rank` singular triples; None = all.

    Small matrices and large ranks get an exact SVD. When the smaller side is at least 4 (rank + 32), the matrix is
    first projected on a random sketch of rank + 32 columns after 4 power iterations (Halko, Martinsson and Tropp
    2011, algorithms 4.4 and 5.1). The error is then within 1 % of the best for noise, whose spectrum is the worst
    case, and within 0.1 % when singular values fall as 1 / sqrt(i). torch.svd_lowrank does the same; this one has its
    own random generator, so that equal checkpoints give equal LoRAs.
    """
    size = None if rank is None else rank + OVERSAMPLING
    if size is None or SMALL * size > min(matrix.shape):
        U, S, Vh = svd(matrix, full_matrices=False)
        return U, S, Vh
    draws = torch.randn(matrix.shape[1], size, generator=torch.Generator().manual_seed(0))
    Q = qr(matrix @ draws.to(matrix)).Q
    for _ in range(ITERATIONS):
        Q = qr(matrix @ qr(matrix.T @ Q).Q).Q
    U, S, Vh = svd(Q.T @ matrix, full_matrices=False)
    return Q @ U, S, Vh
