"""Low-rank weight updates as values, and their arithmetic."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.families import ModuleShape


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

    def delta(self) -> Tensor:
        """Delta W, (out, in) or (out, in, k, k)."""
        return (self.B.flatten(1) @ self.A.flatten(1)).view(self.B.shape[0], *self.A.shape[1:])


class Lazy(Mapping[str, LowRank]):
    """Updates that are made when they are asked for, and not kept: of a whole file, one is in memory at a time."""

    def __init__(self, names: Iterable[str], make: Callable[[str], LowRank]) -> None:
        self._names, self._make = dict.fromkeys(names), make

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


@dataclass(frozen=True)
class Adapter:
    """One LoRA: an update per module of the network, and what its file said about itself."""

    modules: Mapping[str, LowRank]  # dotted module name -> update
    metadata: Mapping[str, Any] = field(default_factory=dict)  # the recipe: how it wants to be sampled
    unplaced: str = "is not in it"  # what is said of a module that the model does not have

    def parameters(self) -> int:
        """Values in all A and B."""
        return sum(u.A.numel() + u.B.numel() for u in self.modules.values())

    def without(self, names: Iterable[str]) -> "Adapter":
        """The adapter but for these modules."""
        left_out = set(names)
        kept = [name for name in self.modules if name not in left_out]
        return replace(self, modules=Lazy(kept, self.modules.__getitem__))


Weight = float | Callable[[str], float]  # of all modules, or of each by its name


def linear_combination(terms: Sequence[tuple[float, LowRank]]) -> LowRank:
    """sum_i w_i B_i A_i, exactly, at rank sum_i rank_i (LCM-LoRA report, eq. 3).

    Adding the factors instead would bring in the cross terms B_i A_j.
    """
    return LowRank(
        A=torch.cat([u.A for _, u in terms], dim=0),
        B=torch.cat([w * u.B for w, u in terms], dim=1),
    )


def combine(terms: Sequence[tuple[Weight, Adapter]]) -> Lazy:
    """The linear combination of whole adapters, over the union of their modules, module by module."""
    names = dict.fromkeys(name for _, adapter in terms for name in adapter.modules)

    def make(name: str) -> LowRank:
        return linear_combination([(weight_of(w, name), a.modules[name]) for w, a in terms if name in a.modules])

    return Lazy(names, make)


def weight_of(weight: Weight, name: str) -> float:
    """The weight of one module."""
    return weight(name) if callable(weight) else weight


def misfits(adapter: Adapter, shapes: Mapping[str, ModuleShape]) -> list[str]:
    """The adapter's modules that are not in the network, or not with that shape; missing ones first."""
    missing = [name for name in adapter.modules if name not in shapes]
    return missing + [name for name, u in adapter.modules.items() if name in shapes and u.shape != shapes[name]]


def check_fits(adapter: Adapter, shapes: Mapping[str, ModuleShape], lora: str, model: str) -> None:
    """Raise FewstepError unless every module of the adapter is in the network, with its shape."""
    wrong = misfits(adapter, shapes)
    if not wrong:
        return
    first, total = wrong[0], len(adapter.modules)
    detail = (
        f"{first} is {_size(adapter, first)} and not {_said(shapes[first])}"
        if first in shapes
        else f"{first} {adapter.unplaced}"
    )
    raise FewstepError(
        f"LoRA {lora} does not fit {model}: {total - len(wrong)} of {total} modules match; {detail}",
        "use a LoRA made for this model's family, or the model the LoRA was made for",
    )


def _size(adapter: Adapter, name: str) -> str:
    return _said(adapter.modules[name].shape)


def _said(shape: ModuleShape) -> str:
    return f"{shape.in_} -> {shape.out}" + (f", {shape.kernel} x {shape.kernel}" if shape.kernel else "")
