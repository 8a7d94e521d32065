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

CANCELLED = 1e-6  # share of the sum of absolute terms; a smaller result of Gram matrices has lost too many digits
COLUMNS = 1024  # columns of Delta W that are made at a time when only its norm is needed


class Size(NamedTuple):
    """The size of an update, known before its values are read."""

    shape: ModuleShape  # shape of the weight that it updates
    rank: int

    @property
    def parameters(self) -> int:
        """The number of values in A and B."""
        return self.shape.lora_parameters(self.rank)

    @property
    def factors(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of A and B."""
        out, in_, kernel = self.shape
        sides, ones = ((kernel, kernel), (1, 1)) if kernel else ((), ())
        return (self.rank, in_, *sides), (out, self.rank, *ones)


class LowRank(NamedTuple):
    """Delta W = B A for one Linear or Conv2d. B includes the scale lora_alpha / rank (LoRA, arXiv 2106.09685)."""

    A: Tensor  # (R, in) down, or (R, in, k, k) for a Conv2d
    B: Tensor  # (out, R) up, or (out, R, 1, 1)

    @property
    def rank(self) -> int:
        """R."""
        return int(self.A.shape[0])

    @property
    def shape(self) -> ModuleShape:
        """The shape of the weight that it updates."""
        return ModuleShape(self.B.shape[0], self.A.shape[1], self.A.shape[2] if self.A.ndim == 4 else 0)

    @property
    def size(self) -> Size:
        """Shape and rank of the update."""
        return Size(self.shape, self.rank)

    def delta(self) -> Tensor:
        """Delta W, of shape (out, in) or (out, in, k, k)."""
        return (self.B.flatten(1) @ self.A.flatten(1)).view(self.B.shape[0], *self.A.shape[1:])


class Lazy(Mapping[str, LowRank]):
    """Updates that are made on request and not kept. For a whole file, one update at a time is in memory.

    Their sizes and norms are known without making them.
    """

    def __init__(
        self,
        names: Iterable[str],
        make: Callable[[str], LowRank],
        size: Callable[[str], Size] | None = None,
        square: Callable[[str], float] | None = None,
    ) -> None:
        """size: name -> size of its update. square: name -> ||Delta W||_F^2. None = computed from the update."""
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
    """float16, bfloat16 or float32: the smallest type that holds the values of all of these; float16 for no types.

    float16 and bfloat16 both hold the 8-bit types. float64 becomes float32. float16 and bfloat16 together need float32.
    """
    halves = {dtype for dtype in types if dtype.itemsize > 1}
    whole = reduce(torch.promote_types, halves) if halves else torch.float16
    return whole if whole in (torch.float16, torch.bfloat16) else torch.float32


def size_of(modules: Mapping[str, LowRank], name: str) -> Size:
    """The size of one of the updates. Updates of a file know it without reading values."""
    return modules.size(name) if isinstance(modules, Lazy) else modules[name].size


def square_of(modules: Mapping[str, LowRank], name: str) -> float:
    """||Delta W||_F^2 of one of the updates, in float64."""
    return modules.square(name) if isinstance(modules, Lazy) else squared_norm(modules[name])


@dataclass(frozen=True, eq=False)
class Adapter:
    """One LoRA: an update per module of the network, and its file's metadata."""

    modules: Mapping[str, LowRank]  # dotted module name -> update
    metadata: Mapping[str, Any] = field(default_factory=dict)  # of its file, with its recipe
    unplaced: str = "is not in it"  # words of the error about a module that the model does not have

    def parameters(self) -> int:
        """The number of values in all A and B."""
        return sum(self.size(name).parameters for name in self.modules)

    def size(self, name: str) -> Size:
        """The size of one module's update."""
        return size_of(self.modules, name)

    def without(self, names: Iterable[str]) -> "Adapter":
        """The adapter without these modules."""
        left_out = set(names)
        kept = [name for name in self.modules if name not in left_out]
        modules = Lazy(kept, self.modules.__getitem__, self.size, lambda name: square_of(self.modules, name))
        return replace(self, modules=modules)


def squared_norm(update: LowRank) -> float:
    """||B A||_F^2 in float64, from the Gram matrices B^T B and A A^T, or from QR's triangles when those cancel.

    When the rank is not smaller than the matrix, Delta W itself is faster; it is made in slices of its columns.
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
    """The sum of squares of a factor's values, in float64."""
    return float(torch.linalg.vector_norm(factor, dtype=torch.float64)) ** 2


def identity(factor: Tensor) -> bool:
    """Whether a factor is the identity. One is when an update keeps Delta W whole."""
    matrix = factor.flatten(1)
    return matrix.shape[0] == matrix.shape[1] and torch.equal(matrix, torch.eye(len(matrix)).to(matrix))


Weighting = float | Callable[[str], float]  # the weight of all modules, or module name -> its weight


def linear_combination(terms: Sequence[tuple[float, LowRank]]) -> LowRank:
    """The update sum_i w_i B_i A_i, exactly, at rank sum_i rank_i (LCM-LoRA report, eq. 3).

    A sum of the factors instead would add the cross terms B_i A_j.
    """
    return LowRank(
        A=torch.cat([u.A for _, u in terms], dim=0),
        B=torch.cat([w * u.B for w, u in terms], dim=1),
    )


def combine(terms: Sequence[tuple[Weighting, Adapter]]) -> Lazy:
    """The linear combination of whole adapters, made module by module over the union of their modules."""
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
    """The adapter's modules that the network lacks, or has with another shape. Missing ones come first."""
    missing = [name for name in adapter.modules if name not in shapes]
    return missing + [name for name in adapter.modules if name in shapes and adapter.size(name).shape != shapes[name]]


def check_fits(adapter: Adapter, shapes: Mapping[str, ModuleShape], lora: str, model: str) -> None:
    """Raise FewstepError unless the network has every module of the adapter, with the same shape."""
    wrong = misfits(adapter, shapes)
    if not wrong:
        return
    first, total = wrong[0], len(adapter.modules)
    detail = (
        f"{first} is {_size(adapter, first)}, not {_in_words(shapes[first])}"
        if first in shapes
        else f"{first} {adapter.unplaced}"
    )
    raise FewstepError(
        f"LoRA {lora} does not fit {model}: {total - len(wrong)} of {total} modules match; {detail}",
        "use a LoRA made for this model's family, or the model that the LoRA was made for",
    )


def _size(adapter: Adapter, name: str) -> str:
    return _in_words(adapter.size(name).shape)


def _in_words(shape: ModuleShape) -> str:
    return f"{shape.in_} -> {shape.out}" + (f", {shape.kernel} x {shape.kernel}" if shape.kernel else "")
