"""Low-rank weight updates as values, and their arithmetic."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.linalg import qr

from fewstep.errors import FewstepError
from fewstep.families import ModuleShape

CANCELLED = 1e-6  # of the sum of absolute terms: below it a difference of Gram matrices has lost too many digits
COLUMNS = 1024  # of a Delta W that are made at a time, where only its norm is asked for


class Size(NamedTuple):
    """What is known of an update before its values are read."""

    shape: ModuleShape  # of the weight it is an update of
    rank: int

    @property
    def parameters(self) -> int:
        """Values in A and B."""
        return self.shape.lora_parameters(self.rank)

    @property
    def factors(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of A and B."""
        out, in_, kernel = self.shape
        sides, ones = ((kernel, kernel), (1, 1)) if kernel else ((), ())
        return (self.rank, in_, *sides), (out, self.rank, *ones)


class LowRank(NamedTuple):
    """Delta W = B A of one Linear or Conv2d; the scale lora_alpha / rank is inside B (LoRA, arXiv 2106.09685)."""

    A: Tensor  # (R, in) down, or (R, in, k, k) for a Conv2d
    B: Tensor  # (out, R) up, or (out, R, 1, 1)

    @property
    def rank(self) -> int:
        """R."""
        return int(self.A.shape[0])

    @property
    def shape(self) -> ModuleShape:
        """The weight this is an update of."""
        return ModuleShape(self.B.shape[0], self.A.shape[1], self.A.shape[2] if self.A.ndim == 4 else 0)

    @property
    def size(self) -> Size:
        """Its shape and rank."""
        return Size(self.shape, self.rank)

    def delta(self) -> Tensor:
        """Delta W, (out, in) or (out, in, k, k)."""
        return (self.B.flatten(1) @ self.A.flatten(1)).view(self.B.shape[0], *self.A.shape[1:])


class Lazy(Mapping[str, LowRank]):
    """Updates that are made when they are asked for, and not kept: of a whole file, one is in memory at a time.

    Their sizes and norms are known without making them.
    """

    def __init__(
        self,
        names: Iterable[str],
        make: Callable[[str], LowRank],
        size: Callable[[str], Size] | None = None,
        square: Callable[[str], float] | None = None,
    ) -> None:
        """size: of a name's update. square: its ||Delta W||_F^2. None = of the update once it is made."""
        self._names, self._make = dict.fromkeys(names), make
        self.size = size or (lambda name: make(name).size)
        self.square = square or (lambda name: squared_norm(make(name)))

    def __getitem__(self, name: str) -> LowRank:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def widest(types: Iterable[torch.dtype]) -> torch.dtype:
    """float16, bfloat16 or float32: the smallest that holds what each of these does; of no types float16.

    Types of 8 bits are in both halves, float64 is rounded, and float16 beside bfloat16 takes float32.
    """
    halves = {dtype for dtype in types if dtype.itemsize > 1}
    whole = reduce(torch.promote_types, halves) if halves else torch.float16
    return whole if whole in (torch.float16, torch.bfloat16) else torch.float32


def size_of(modules: Mapping[str, LowRank], name: str) -> Size:
    """The size of one of the updates, which a file's tells without its values."""
    return modules.size(name) if isinstance(modules, Lazy) else modules[name].size


def square_of(modules: Mapping[str, LowRank], name: str) -> float:
    """||Delta W||_F^2 of one of the updates, in float64."""
    return modules.square(name) if isinstance(modules, Lazy) else squared_norm(modules[name])


@dataclass(frozen=True, eq=False)
class Adapter:
    """One LoRA: an update per module of the network, and what its file said about itself."""

    modules: Mapping[str, LowRank]  # dotted module name -> update
    metadata: Mapping[str, Any] = field(default_factory=dict)  # the recipe: how it wants to be sampled
    unplaced: str = "is not in it"  # what is said of a module that the model does not have

    def parameters(self) -> int:
        """Values in all A and B."""
        return sum(self.size(name).parameters for name in self.modules)

    def size(self, name: str) -> Size:
        """Of one module's update."""
        return size_of(self.modules, name)

    def without(self, names: Iterable[str]) -> "Adapter":
        """The adapter but for these modules."""
        left_out = set(names)
        kept = [name for name in self.modules if name not in left_out]
        modules = Lazy(kept, self.modules.__getitem__, self.size, lambda name: square_of(self.modules, name))
        return replace(self, modules=modules)


def squared_norm(update: LowRank) -> float:
    """||B A||_F^2 in float64, from the Gram matrices B^T B and A A^T; from QR's triangles where those cancel.

    A rank that is no smaller than the matrix makes Delta W itself the shorter way, in slices of its columns.
    """
    A, B = update.A.flatten(1), update.B.flatten(1).double()
    if identity(update.B):
        return squares(A)
    if identity(update.A):
        return squares(update.B)
    if update.rank >= min(len(B), A.shape[1]):
        return sum(squares(B @ A[:, at : at + COLUMNS].double()) for at in range(0, A.shape[1], COLUMNS))
    A = A.double()
    terms = (B.T @ B) * (A @ A.T)
    total = float(terms.sum())
    if total > CANCELLED * float(terms.abs().sum()):
        return total
    return float((qr(B, mode="r").R @ qr(A.T, mode="r").R.T).square().sum())


def squares(factor: Tensor) -> float:
    """The sum of squares, in float64."""
    return float(torch.linalg.vector_norm(factor, dtype=torch.float64)) ** 2


def identity(factor: Tensor) -> bool:
    """Whether a factor is the identity, as it is where Delta W is kept whole."""
    matrix = factor.flatten(1)
    return matrix.shape[0] == matrix.shape[1] and torch.equal(matrix, torch.eye(len(matrix)).to(matrix))


Weighting = float | Callable[[str], float]  # of all modules, or of each by its name


def linear_combination(terms: Sequence[tuple[float, LowRank]]) -> LowRank:
    """sum_i w_i B_i A_i, exactly, at rank sum_i rank_i (LCM-LoRA report, eq. 3).

    Adding the factors instead would bring in the cross terms B_i A_j.
    """
    return LowRank(
        A=torch.cat([u.A for _, u in terms], dim=0),
        B=torch.cat([w * u.B for w, u in terms], dim=1),
    )


def combine(terms: Sequence[tuple[Weighting, Adapter]]) -> Lazy:
    """The linear combination of whole adapters, over the union of their modules, module by module."""
    names = dict.fromkeys(name for _, adapter in terms for name in adapter.modules)

    def make(name: str) -> LowRank:
        return linear_combination([(weight_of(w, name), a.modules[name]) for w, a in terms if name in a.modules])

    def size(name: str) -> Size:
        sizes = [a.size(name) for _, a in terms if name in a.modules]
        return Size(sizes[0].shape, sum(size.rank for size in sizes))

    return Lazy(names, make, size)


def weight_of(weight: Weighting, name: str) -> float:
    """The weight of one module."""
    return weight(name) if callable(weight) else weight


def misfits(adapter: Adapter, shapes: Mapping[str, ModuleShape]) -> list[str]:
    """The adapter's modules that are not in the network, or not with that shape; missing ones first."""
    missing = [name for name in adapter.modules if name not in shapes]
    return missing + [name for name in adapter.modules if name in shapes and adapter.size(name).shape != shapes[name]]


def check_fits(adapter: Adapter, shapes: Mapping[str, ModuleShape], lora: str, model: str) -> None:
    """Raise FewstepError unless every module of the adapter is in the network, with its shape."""
    wrong = misfits(adapter, shapes)
    if not wrong:
        return
    first, total = wrong[0], len(adapter.modules)
    detail = (
        f"{first} is {_size(adapter, first)} and not {_in_words(shapes[first])}"
        if first in shapes
        else f"{first} {adapter.unplaced}"
    )
    raise FewstepError(
        f"LoRA {lora} does not fit {model}: {total - len(wrong)} of {total} modules match; {detail}",
        "use a LoRA made for this model's family, or the model the LoRA was made for",
    )


def _size(adapter: Adapter, name: str) -> str:
    return _in_words(adapter.size(name).shape)


def _in_words(shape: ModuleShape) -> str:
    return f"{shape.in_} -> {shape.out}" + (f", {shape.kernel} x {shape.kernel}" if shape.kernel else "")
