"""From the tensors a file keeps of one module to Delta W = B A, exactly: LoRA, LoCon, LoHa and LoKr."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fewstep.lora.low_rank import LowRank

Parts = Mapping[str, Tensor]
Scale = Callable[[int], float]  # of rank R, for files that keep alpha elsewhere


def low_rank_of(parts: Parts, kernel: int | None, scale_of: Scale | None = None) -> LowRank:
    """The update of one module, in float32, its scale alpha / rank inside B.

    parts: what dialects.PARTS call the tensors. kernel: side of the module's kernel, which LoHa and LoKr do not keep; 0
    for a Linear, None for a module nobody knows. Raises ValueError when the tensors do not fit together.
    """
    parts = {name: tensor.float() for name, tensor in parts.items()}
    alpha = parts.pop("alpha", None)
    if alpha is not None and alpha.numel() != 1:
        raise ValueError(f"alpha has {alpha.numel()} values")
    make = next((make for sign, make in KINDS.items() if any(name.startswith(sign) for name in parts)), None)
    if make is None:
        raise ValueError("there are no factors")
    update, rank = make(parts, kernel or 0)
    if update.rank == 0:
        raise ValueError("the rank is 0")
    if alpha is not None:
        scale = float(alpha) / rank if rank else 1.0
    else:
        scale = scale_of(rank) if scale_of and rank else 1.0
    return shaped(LowRank(update.A, update.B * scale), kernel)


def lora(parts: Parts, kernel: int) -> tuple[LowRank, int]:
    """B A; with a k x k middle (LoCon's Tucker form) it is folded into A."""
    expect(parts, {"down", "up"}, {"mid"})
    A, B = parts["down"], parts["up"]
    if A.ndim not in (2, 4) or B.ndim != A.ndim or B.shape[1] != A.shape[0] or B.shape[2:] not in {(), (1, 1)}:
        raise ValueError(f"lora_down {tuple(A.shape)} and lora_up {tuple(B.shape)} do not match")
    if "mid" in parts:
        A = folded(parts["mid"], A)
    return LowRank(A, B), A.shape[0]


def loha(parts: Parts, kernel: int) -> tuple[LowRank, int]:
    """(B1 A1) * (B2 A2), elementwise, as one product of rank R1 R2: the Khatri-Rao products of the factors."""
    expect(parts, {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}, {"hada_t1", "hada_t2"})
    B1, A1 = pair(parts["hada_w1_a"], parts["hada_w1_b"], parts.get("hada_t1"))
    B2, A2 = pair(parts["hada_w2_a"], parts["hada_w2_b"], parts.get("hada_t2"))
    if B1.shape[0] != B2.shape[0] or A1.shape[1:] != A2.shape[1:]:
        raise ValueError(f"the halves update {B1.shape[0], *A1.shape[1:]} and {B2.shape[0], *A2.shape[1:]}")
    B = torch.einsum("or,os->ors", B1, B2).flatten(1)
    A = torch.einsum("r...,s...->rs...", A1, A2).flatten(0, 1)
    return slim(LowRank(A, B)), A1.shape[0]


def lokr(parts: Parts, kernel: int) -> tuple[LowRank, int]:
    """W1 (x) W2, the Kronecker product; its factors are those of the factors. alpha is ignored when both are full."""
    expect(parts, set(), {name for name in parts if name.startswith("lokr_")})
    B1, A1, rank1 = side(parts, "lokr_w1")
    B2, A2, rank2 = side(parts, "lokr_w2")
    if A1.ndim != 2:
        raise ValueError(f"lokr_w1 has {A1.ndim} dimensions")
    if kernel > 1 and A2.ndim == 2:
        A2 = A2.view(len(A2), -1, kernel, kernel)
    B, A = torch.kron(B1.contiguous(), B2.contiguous()), kron_rows(A1, A2)
    return slim(LowRank(A, B)), rank1 or rank2


def side(parts: Parts, name: str) -> tuple[Tensor, Tensor, int]:
    """B (out, R), A (R, in, ...) of one Kronecker factor, and its rank, 0 when it is kept whole."""
    if name in parts:
        update = slim(LowRank(parts[name], torch.eye(len(parts[name]))))
        return update.B, update.A, 0
    if not {f"{name}_a", f"{name}_b"} <= parts.keys():
        raise ValueError(f"{name} is missing")
    B, A = pair(parts[f"{name}_a"], parts[f"{name}_b"], parts.get("lokr_t2") if name == "lokr_w2" else None)
    return B, A, A.shape[0]


def pair(a: Tensor, b: Tensor, t: Tensor | None) -> tuple[Tensor, Tensor]:
    """B (out, R) and A (R, in, ...) of a @ b, or of LyCORIS' Tucker form t_ijkl a_io b_jn."""
    if t is None:
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
            raise ValueError(f"factors {tuple(a.shape)} and {tuple(b.shape)} do not match")
        return a, b
    return a.T, folded(t, b)


def folded(middle: Tensor, down: Tensor) -> Tensor:
    """sum_j middle[i, j, k, l] down[j, n]: (R, in, k, k)."""
    if middle.ndim != 4 or middle.shape[1] != down.shape[0]:
        raise ValueError(f"a middle of {tuple(middle.shape)} and {tuple(down.shape)} do not match")
    return torch.einsum("ijkl,jn->inkl", middle, down.flatten(1))


def kron_rows(A1: Tensor, A2: Tensor) -> Tensor:
    """Kronecker product of (R, in) and (S, n, ...): (R S, in n, ...)."""
    return torch.einsum("ri,sn...->rsin...", A1, A2).flatten(2, 3).flatten(0, 1)


def slim(update: LowRank) -> LowRank:
    """The same Delta W at a rank of at most min(out, in k k): multiplied out if it must be."""
    return update if update.rank <= min(update.B.shape[0], update.A[0].numel()) else whole(update.delta())


def whole(delta: Tensor) -> LowRank:
    """Delta W (out, in, ...) itself as one of its factors, at a rank of min(out, in ...); the other is the identity."""
    out, fan_in = delta.shape[0], delta[0].numel()
    if out <= fan_in:
        return LowRank(delta, torch.eye(out))
    return LowRank(torch.eye(fan_in).view(fan_in, *delta.shape[1:]), delta.flatten(1))


def shaped(update: LowRank, kernel: int | None) -> LowRank:
    """With the dimensions a Linear (2) or a Conv2d (4) has: some files keep a 1 x 1 Conv2d as a Linear, or one as it.

    Factors that are of another kernel, or of a module nobody knows (None), stay as they are.
    """
    A, B = update
    side = kernel or 1
    if kernel is None or A[0].numel() % side**2 or (A.ndim == 4 and A.shape[2:] != (side, side)):
        return update
    A, B = A.reshape(len(A), -1, side, side), B.reshape(*B.shape[:2], 1, 1)
    return LowRank(A, B) if kernel else LowRank(A.flatten(1), B.flatten(1))


def expect(parts: Parts, needed: set[str], allowed: set[str]) -> None:
    """Raise ValueError unless exactly these parts are there."""
    missing, unknown = needed - parts.keys(), parts.keys() - needed - allowed
    if missing or unknown:
        raise ValueError(f"{min(missing)} is missing" if missing else f"{min(unknown)} does not belong there")


KINDS: Mapping[str, Callable[[Parts, int], tuple[LowRank, int]]] = {"hada_": loha, "lokr_": lokr, "": lora}
