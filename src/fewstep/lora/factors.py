"""From the tensors a file keeps of one module to Delta W = B A, exactly: LoRA, LoCon, LoHa and LoKr.

Shapes are checked before anything is multiplied: `size_of_parts` takes the same factors without their values.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from fewstep.families import ModuleShape
from fewstep.lora.low_rank import COLUMNS, LowRank, Size, squared_norm, squares

Parts = Mapping[str, Tensor]


class Factors(Protocol):
    """What a file keeps of one module, of one kind: its tensors fit together, nothing is multiplied out yet."""

    @property
    def divisor(self) -> int:
        """The rank that alpha is divided by; 0 = alpha does not count."""

    @property
    def rank(self) -> int:
        """Of the update."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of Delta W: (out, in) or (out, in, k, k), or (out, in k k) where the kernel is not kept."""

    def low_rank(self) -> LowRank:
        """The update, its scale left out."""

    def square(self) -> float:
        """||Delta W||_F^2 of it, in float64, without multiplying it out."""


def factors_of(parts: Parts) -> Factors:
    """The factors among a module's tensors, which dialects.PARTS name. Raises ValueError when they do not fit."""
    kind = next((kind for sign, kind in KINDS.items() if any(name.startswith(sign) for name in parts)), None)
    if kind is None:
        raise ValueError("there are no factors")
    return kind({name: tensor.float() for name, tensor in parts.items()})


@lru_cache(4096)
def size_of_parts(shapes: tuple[tuple[str, tuple[int, ...]], ...], kernel: int | None) -> Size:
    """The size of the update that tensors of these shapes make, by part. Raises ValueError as `factors_of` does."""
    factors = factors_of({name: torch.empty(shape, device="meta") for name, shape in shapes})
    out, in_, *sides = factors.shape
    fan_in = in_ * math.prod(sides)
    if is_of_kernel(fan_in, sides, kernel):
        return Size(ModuleShape(out, fan_in // (kernel or 1) ** 2, kernel or 0), factors.rank)
    return Size(ModuleShape(out, in_, sides[0] if sides else 0), factors.rank)


@dataclass(frozen=True)
class Product:
    """B A: LoRA; and LoCon's Tucker form, its k x k middle folded into A."""

    A: Tensor
    B: Tensor

    @property
    def divisor(self) -> int:
        """R."""
        return self.A.shape[0]

    @property
    def rank(self) -> int:
        """R."""
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of B A."""
        return (self.B.shape[0], *self.A.shape[1:])

    def low_rank(self) -> LowRank:
        """Itself."""
        return LowRank(self.A, self.B)

    def square(self) -> float:
        """||B A||_F^2."""
        return squared_norm(self.low_rank())

    @property
    def outputs(self) -> int:
        """Rows of Delta W."""
        return self.B.shape[0]

    @property
    def inputs(self) -> int:
        """Columns of Delta W."""
        return self.A.shape[1:].numel()


@dataclass(frozen=True)
class Hadamard:
    """(B1 A1) * (B2 A2), elementwise: LoHa."""

    first: Product
    second: Product

    @property
    def divisor(self) -> int:
        """R of the first."""
        return self.first.divisor

    @property
    def rank(self) -> int:
        """R1 R2, or what a matrix has at most."""
        return min(self.first.rank * self.second.rank, self.first.outputs, self.first.inputs)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of each half."""
        return self.first.shape

    def low_rank(self) -> LowRank:
        """At rank R1 R2, by Khatri-Rao products of the factors; multiplied out where no matrix has so high a rank."""
        (A1, B1), (A2, B2) = self.first.low_rank(), self.second.low_rank()
        if self.first.rank * self.second.rank > self.rank:
            return whole(LowRank(A1, B1).delta() * LowRank(A2, B2).delta())
        B = torch.einsum("or,os->ors", B1, B2).flatten(1)
        return LowRank(torch.einsum("r...,s...->rs...", A1, A2).flatten(0, 1), B)

    def square(self) -> float:
        """||Delta W||_F^2, some columns at a time."""
        R1, R2, rows, columns = self.first.rank, self.second.rank, self.first.outputs, self.first.inputs
        if (R1 * R2) ** 2 * (rows + columns) < rows * columns * (R1 + R2):
            return squared_norm(self.low_rank())
        (A1, B1), (A2, B2) = ((half.A.flatten(1), half.B.double()) for half in (self.first, self.second))
        parts = (slice(start, start + COLUMNS) for start in range(0, columns, COLUMNS))
        return sum(squares((B1 @ A1[:, part].double()) * (B2 @ A2[:, part].double())) for part in parts)


@dataclass(frozen=True)
class Kronecker:
    """W1 (x) W2 of W1 = B1 A1 and W2 = B2 A2: LoKr."""

    first: Product
    second: Product
    divisor: int  # 0 = both are whole

    @property
    def rank(self) -> int:
        """R1 R2, or what a matrix has at most."""
        rows, columns = self.first.outputs * self.second.outputs, self.first.inputs * self.second.inputs
        return min(self.first.rank * self.second.rank, rows, columns)

    @property
    def shape(self) -> tuple[int, ...]:
        """(out1 out2, in1 in2), with W2's kernel if it has one."""
        out, in_, *sides = self.second.shape
        return (self.first.outputs * out, self.first.inputs * in_, *sides)

    def low_rank(self) -> LowRank:
        """By the factors of the factors; multiplied out where their rank is all that the matrix has.

        W2 is (out, in k k) or (out, in, k, k). LyCORIS' first LoKr splits all of in k k; flattened they are alike.
        """
        (A1, B1), (A2, B2) = self.first.low_rank(), self.second.low_rank()
        out, *inner = self.shape
        shape = (-1, *inner)
        if self.rank == min(out, math.prod(inner)):
            W1, W2 = LowRank(A1, B1).delta(), LowRank(A2, B2).delta()
            return whole(kron(W1, W2.flatten(1)).view(shape))
        return LowRank(kron(A1, A2.flatten(1)).view(shape), kron(B1, B2))

    def square(self) -> float:
        """||W1||_F^2 ||W2||_F^2."""
        return self.first.square() * self.second.square()


def lora(parts: Parts) -> Product:
    """From lora_down, lora_up and lora_mid; a 1 x 1 up may be kept flat."""
    expect(parts, {"down", "up"}, {"mid"})
    A, B = parts["down"], parts["up"]
    if A.ndim not in (2, 4) or B.ndim not in (2, 4) or B.shape[1] != A.shape[0] or B.shape[2:] not in {(), (1, 1)}:
        raise ValueError(f"lora_down {tuple(A.shape)} and lora_up {tuple(B.shape)} do not match")
    if "mid" in parts:
        A = folded(parts["mid"], A)
    return checked(A, B.reshape(*B.shape[:2], *(1,) * (A.ndim - 2)))


def loha(parts: Parts) -> Hadamard:
    """From hada_w1_a and so on."""
    expect(parts, {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}, {"hada_t1", "hada_t2"})
    first = pair(parts["hada_w1_a"], parts["hada_w1_b"], parts.get("hada_t1"))
    second = pair(parts["hada_w2_a"], parts["hada_w2_b"], parts.get("hada_t2"))
    sizes = [(half.B.shape[0], *half.A.shape[1:]) for half in (first, second)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"the halves update {sizes[0]} and {sizes[1]}")
    return Hadamard(first, second)


def lokr(parts: Parts) -> Kronecker:
    """From lokr_w1 or its factors, and lokr_w2 or its factors. alpha is ignored when both are whole."""
    expect(parts, set(), {name for name in parts if name.startswith("lokr_")})
    first, rank1 = side(parts, "lokr_w1")
    second, rank2 = side(parts, "lokr_w2")
    if first.A.ndim != 2:
        raise ValueError(f"lokr_w1 has {first.A.ndim} dimensions")
    return Kronecker(first, second, rank1 or rank2)


def side(parts: Parts, name: str) -> tuple[Product, int]:
    """One Kronecker factor, and its rank, 0 when it is kept whole."""
    if name in parts:
        if parts[name].ndim not in (2, 4):
            raise ValueError(f"{name} has {parts[name].ndim} dimensions")
        A, B = whole(parts[name])
        return checked(A, B), 0
    if not {f"{name}_a", f"{name}_b"} <= parts.keys():
        raise ValueError(f"{name} is missing")
    product = pair(parts[f"{name}_a"], parts[f"{name}_b"], parts.get("lokr_t2") if name == "lokr_w2" else None)
    return product, product.divisor


def pair(a: Tensor, b: Tensor, t: Tensor | None) -> Product:
    """a @ b, or LyCORIS' Tucker form t_ijkl a_io b_jn."""
    if t is None:
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
            raise ValueError(f"factors {tuple(a.shape)} and {tuple(b.shape)} do not match")
        return checked(b, a)
    if a.ndim != 2 or t.ndim != 4 or a.shape[0] != t.shape[0]:
        raise ValueError(f"factors {tuple(a.shape)} and {tuple(t.shape)} do not match")
    return checked(folded(t, b), a.T)


def checked(A: Tensor, B: Tensor) -> Product:
    """B A. Raises ValueError for a rank of 0 and for a kernel that is not square, which no module here has."""
    if A.ndim == 4 and A.shape[2] != A.shape[3]:
        raise ValueError(f"the kernel is {A.shape[2]} x {A.shape[3]}")
    if 0 in A.shape or 0 in B.shape:
        raise ValueError(f"the rank is 0, or a side: {tuple(A.shape)} and {tuple(B.shape)}")
    return Product(A, B)


def folded(middle: Tensor, down: Tensor) -> Tensor:
    """sum_j middle[i, j, k, l] down[j, n]: (R, in, k, k)."""
    if (
        middle.ndim != 4
        or down.ndim not in (2, 4)
        or down.shape[2:] not in {(), (1, 1)}
        or middle.shape[1] != len(down)
    ):
        raise ValueError(f"a middle of {tuple(middle.shape)} and {tuple(down.shape)} do not match")
    down = down.flatten(1)
    if middle.is_meta:  # where torch's first product takes 80 MB
        return middle.new_empty(middle.shape[0], down.shape[1], *middle.shape[2:])
    return torch.einsum("ijkl,jn->inkl", middle, down)


def kron(X: Tensor, Y: Tensor) -> Tensor:
    """The Kronecker product of two matrices."""
    return torch.einsum("ab,cd->acbd", X, Y).reshape(len(X) * len(Y), -1)


def whole(delta: Tensor) -> LowRank:
    """Delta W (out, in, ...) itself as one of its factors, at a rank of min(out, in ...); the other is the identity."""
    out, fan_in = delta.shape[0], delta.shape[1:].numel()
    if out <= fan_in:
        return LowRank(delta, eye(out, delta))
    return LowRank(eye(fan_in, delta).view(fan_in, *delta.shape[1:]), delta.flatten(1))


def eye(size: int, like: Tensor) -> Tensor:
    """The identity, where another tensor is; where that has no values, without them (torch.eye takes 80 MB there)."""
    return like.new_empty(size, size) if like.is_meta else torch.eye(size, device=like.device)


def shaped(update: LowRank, kernel: int | None) -> LowRank:
    """With the dimensions a Linear (2) or a Conv2d (4) has: some files keep a 1 x 1 Conv2d as a Linear, or one as it.

    kernel: the side of the module's kernel, which LoHa and LoKr do not keep; 0 for a Linear, None for a module nobody
    knows. Factors that are of another kernel, or of a module nobody knows, stay as they are.
    """
    A, B = update
    if not is_of_kernel(A.shape[1:].numel(), A.shape[2:], kernel):
        return update
    side = kernel or 1
    A, B = A.reshape(len(A), -1, side, side), B.reshape(*B.shape[:2], 1, 1)
    return LowRank(A, B) if kernel else LowRank(A.flatten(1), B.flatten(1))


def is_of_kernel(fan_in: int, sides: Sequence[int], kernel: int | None) -> bool:
    """Whether a Delta W of so many inputs, with these sides of its kernel if any, can be a module's of `kernel`."""
    side = kernel or 1
    return kernel is not None and fan_in % side**2 == 0 and tuple(sides) in {(), (side, side)}


def expect(parts: Iterable[str], needed: set[str], allowed: set[str]) -> None:
    """Raise ValueError unless exactly these parts are there."""
    missing, unknown = needed - set(parts), set(parts) - needed - allowed
    if missing or unknown:
        raise ValueError(f"{min(missing)} is missing" if missing else f"{min(unknown)} does not belong there")


KINDS: Mapping[str, Callable[[Parts], Factors]] = {"hada_": loha, "lokr_": lokr, "": lora}
