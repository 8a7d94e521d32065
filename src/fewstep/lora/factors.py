"""Delta W = B A, exactly, from the tensors that a file keeps for one module: LoRA, LoCon, LoHa and LoKr.

Shapes are checked before anything is multiplied: `size_of_parts` builds the same factors without values.
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
    """The tensors of one module in a file, of one kind. They fit together; nothing is multiplied out yet."""

    @property
    def divisor(self) -> int:
        """The rank that alpha is divided by; 0 = alpha is ignored."""

    @property
    def rank(self) -> int:
        """Rank of the update."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of Delta W: (out, in) or (out, in, k, k); (out, in k k) when the file does not keep the kernel."""

    def low_rank(self) -> LowRank:
        """The update, without its scale."""

    def square(self) -> float:
        """||Delta W||_F^2 without the scale, in float64, without multiplying Delta W out."""


def factors_of(parts: Parts) -> Factors:
    """The factors made of a module's tensors, by part (dialects.PARTS). Raises ValueError when they do not fit."""
    kind = next((kind for sign, kind in KINDS.items() if any(name.startswith(sign) for name in parts)), None)
    if kind is None:
        raise ValueError("there are no factors")
    return kind({name: tensor.float() for name, tensor in parts.items()})


@lru_cache(4096)
def size_of_parts(shapes: tuple[tuple[str, tuple[int, ...]], ...], kernel: int | None) -> Size:
    """The size of the update made of tensors of these shapes, by part. Raises ValueError like `factors_of`."""
    factors = factors_of({name: torch.empty(shape, device="meta") for name, shape in shapes})
    out, in_, *sides = factors.shape
    fan_in = in_ * math.prod(sides)
    if is_of_kernel(fan_in, sides, kernel):
        return Size(ModuleShape(out, fan_in // (kernel or 1) ** 2, kernel or 0), factors.rank)
    return Size(ModuleShape(out, in_, sides[0] if sides else 0), factors.rank)


@dataclass(frozen=True)
class Product:
    """B A: a LoRA, or LoCon's Tucker form with its k x k middle folded into A."""

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
        """R of the first half."""
        return self.first.divisor

    @property
    def rank(self) -> int:
        """R1 R2, but at most the smaller side of the matrix."""
        return min(self.first.rank * self.second.rank, self.first.outputs, self.first.inputs)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of each half."""
        return self.first.shape

    def low_rank(self) -> LowRank:
        """The update at rank R1 R2, by Khatri-Rao products of the factors.

        It is multiplied out when R1 R2 is not smaller than the sides of the matrix.
        """
        (A1, B1), (A2, B2) = self.first.low_rank(), self.second.low_rank()
        if self.first.rank * self.second.rank > self.rank:
            return whole(LowRank(A1, B1).delta() * LowRank(A2, B2).delta())
        B = torch.einsum("or,os->ors", B1, B2).flatten(1)
        return LowRank(torch.einsum("r...,s...->rs...", A1, A2).flatten(0, 1), B)

    def square(self) -> float:
        """||Delta W||_F^2, a block of columns at a time."""
        R1, R2, rows, columns = self.first.rank, self.second.rank, self.first.outputs, self.first.inputs
        if (R1 * R2) ** 2 * (rows + columns) < rows * columns * (R1 + R2):
            return squared_norm(self.low_rank())
        (A1, B1), (A2, B2) = ((half.A.flatten(1), half.B.double()) for half in (self.first, self.second))
        parts = (slice(start, start + COLUMNS) for start in range(0, columns, COLUMNS))
        return sum(squares((B1 @ A1[:, part].double()) * (B2 @ A2[:, part].double())) for part in parts)


@dataclass(frozen=True)
class Kronecker:
    """W1 (x) W2 with W1 = B1 A1 and W2 = B2 A2: LoKr."""

    first: Product
    second: Product
    divisor: int  # 0 = both factors are whole, without A and B

    @property
    def rank(self) -> int:
        """R1 R2, but at most the smaller side of the matrix."""
        rows, columns = self.first.outputs * self.second.outputs, self.first.inputs * self.second.inputs
        return min(self.first.rank * self.second.rank, rows, columns)

    @property
    def shape(self) -> tuple[int, ...]:
        """(out1 out2, in1 in2), followed by W2's kernel if it has one."""
        out, in_, *sides = self.second.shape
        return (self.first.outputs * out, self.first.inputs * in_, *sides)

    def low_rank(self) -> LowRank:
        """The update from the factors of W1 and W2; multiplied out when their rank is not smaller than the matrix.

        W2 is (out, in k k) or (out, in, k, k). LyCORIS' first LoKr splits all of in k k; flattened, both are equal.
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
    """A LoRA from lora_down, lora_up and lora_mid. A 1 x 1 lora_up may have two dimensions only."""
    expect(parts, {"down", "up"}, {"mid"})
    A, B = parts["down"], parts["up"]
    if A.ndim not in (2, 4) or B.ndim not in (2, 4) or B.shape[1] != A.shape[0] or B.shape[2:] not in {(), (1, 1)}:
        raise ValueError(f"lora_down {tuple(A.shape)} and lora_up {tuple(B.shape)} do not match")
    if "mid" in parts:
        A = folded(parts["mid"], A)
    return checked(A, B.reshape(*B.shape[:2], *(1,) * (A.ndim - 2)))


def loha(parts: Parts) -> Hadamard:
    """A LoHa from hada_w1_a and so on."""
    expect(parts, {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}, {"hada_t1", "hada_t2"})
    first = pair(parts["hada_w1_a"], parts["hada_w1_b"], parts.get("hada_t1"))
    second = pair(parts["hada_w2_a"], parts["hada_w2_b"], parts.get("hada_t2"))
    sizes = [(half.B.shape[0], *half.A.shape[1:]) for half in (first, second)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"the halves update {sizes[0]} and {sizes[1]}")
    return Hadamard(first, second)


def lokr(parts: Parts) -> Kronecker:
    """A LoKr from lokr_w1 or its factors, and lokr_w2 or its factors. alpha is ignored when both are whole."""
    expect(parts, set(), {name for name in parts if name.startswith("lokr_")})
    first, rank1 = side(parts, "lokr_w1")
    second, rank2 = side(parts, "lokr_w2")
    if first.A.ndim != 2:
        raise ValueError(f"lokr_w1 has {first.A.ndim} dimensions")
    return Kronecker(first, second, rank1 or rank2)


def side(parts: Parts, name: str) -> tuple[Product, int]:
    """One Kronecker factor and its rank, which is 0 when the file keeps it whole."""
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
    """The product a @ b, or LyCORIS' Tucker form t_ijkl a_io b_jn."""
    if t is None:
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
            raise ValueError(f"factors {tuple(a.shape)} and {tuple(b.shape)} do not match")
        return checked(b, a)
    if a.ndim != 2 or t.ndim != 4 or a.shape[0] != t.shape[0]:
        raise ValueError(f"factors {tuple(a.shape)} and {tuple(t.shape)} do not match")
    return checked(folded(t, b), a.T)


def checked(A: Tensor, B: Tensor) -> Product:
    """The product B A. Raises ValueError for a rank of 0, and for a kernel that is not square (no module has one)."""
    if A.ndim == 4 and A.shape[2] != A.shape[3]:
        raise ValueError(f"the kernel is {A.shape[2]} x {A.shape[3]}")
    if 0 in A.shape or 0 in B.shape:
        raise ValueError(f"the rank or a side is 0: {tuple(A.shape)} and {tuple(B.shape)}")
    return Product(A, B)


def folded(middle: Tensor, down: Tensor) -> Tensor:
    """sum_j middle[i, j, k, l] down[j, n], of shape (R, in, k, k)."""
    if (
        middle.ndim != 4
        or down.ndim not in (2, 4)
        or down.shape[2:] not in {(), (1, 1)}
        or middle.shape[1] != len(down)
    ):
        raise ValueError(f"a middle of {tuple(middle.shape)} and {tuple(down.shape)} do not match")
    down = down.flatten(1)
    if middle.is_meta:  # the first product on this device would take 80 MB in torch
        return middle.new_empty(middle.shape[0], down.shape[1], *middle.shape[2:])
    return torch.einsum("ijkl,jn->inkl", middle, down)


def kron(X: Tensor, Y: Tensor) -> Tensor:
    """The Kronecker product of two matrices."""
    return torch.einsum("ab,cd->acbd", X, Y).reshape(len(X) * len(Y), -1)


def whole(delta: Tensor) -> LowRank:
    """Delta W (out, in, ...) as an update of rank min(out, in ...): one factor is Delta W, the other the identity."""
    out, fan_in = delta.shape[0], delta.shape[1:].numel()
    if out <= fan_in:
        return LowRank(delta, eye(out, delta))
    return LowRank(eye(fan_in, delta).view(fan_in, *delta.shape[1:]), delta.flatten(1))


def eye(size: int, like: Tensor) -> Tensor:
    """The identity on the device of `like`. On the meta device it has no values (torch.eye would take 80 MB there)."""
    return like.new_empty(size, size) if like.is_meta else torch.eye(size, device=like.device)


def shaped(update: LowRank, kernel: int | None) -> LowRank:
    """The update with the dimensions of its module: 2 for a Linear, 4 for a Conv2d.

    Some files keep a 1 x 1 Conv2d like a Linear, or a Linear like a 1 x 1 Conv2d.
    kernel: side of the module's kernel, which LoHa and LoKr files do not keep; 0 for a Linear, None for an unknown
    module. Factors of another kernel, and factors of an unknown module, stay as they are.
    """
    A, B = update
    if not is_of_kernel(A.shape[1:].numel(), A.shape[2:], kernel):
        return update
    side = kernel or 1
    A, B = A.reshape(len(A), -1, side, side), B.reshape(*B.shape[:2], 1, 1)
    return LowRank(A, B) if kernel else LowRank(A.flatten(1), B.flatten(1))


def is_of_kernel(fan_in: int, sides: Sequence[int], kernel: int | None) -> bool:
    """Whether a Delta W can belong to a module whose kernel has the side `kernel`.

    fan_in: columns of Delta W as a matrix. sides: sides of Delta W's kernel; empty when it has none.
    """
    side = kernel or 1
    return kernel is not None and fan_in % side**2 == 0 and tuple(sides) in {(), (side, side)}


def expect(parts: Iterable[str], needed: set[str], allowed: set[str]) -> None:
    """Raise ValueError when a needed part is missing, or a part is neither needed nor allowed."""
    missing, unknown = needed - set(parts), set(parts) - needed - allowed
    if missing or unknown:
        raise ValueError(f"{min(missing)} is missing" if missing else f"{min(unknown)} does not belong there")


KINDS: Mapping[str, Callable[[Parts], Factors]] = {"hada_": loha, "lokr_": lokr, "": lora}
