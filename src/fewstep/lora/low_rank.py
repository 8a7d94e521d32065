"""Low-rank weight updates as values, and their arithmetic."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Adapter:
    """One LoRA: an update per module of the network, and what its file said about itself."""

    modules: Mapping[str, LowRank]  # dotted module name -> update
    metadata: Mapping[str, Any] = field(default_factory=dict)  # the recipe: how it wants to be sampled

    def parameters(self) -> int:
        """Values in all A and B."""
        return sum(u.A.numel() + u.B.numel() for u in self.modules.values())


def linear_combination(terms: Sequence[tuple[float, LowRank]]) -> LowRank:
    """sum_i w_i B_i A_i, exactly, at rank sum_i rank_i (LCM-LoRA report, eq. 3).

    Adding the factors instead would bring in the cross terms B_i A_j.
    """
    return LowRank(
        A=torch.cat([u.A for _, u in terms], dim=0),
        B=torch.cat([w * u.B for w, u in terms], dim=1),
    )


def combine(terms: Sequence[tuple[float, Adapter]]) -> dict[str, LowRank]:
    """The linear combination of whole adapters, over the union of their modules."""
    names = dict.fromkeys(name for _, adapter in terms for name in adapter.modules)
    return {name: linear_combination([(w, a.modules[name]) for w, a in terms if name in a.modules]) for name in names}


def check_fits(adapter: Adapter, shapes: Mapping[str, ModuleShape], lora: str, model: str) -> None:
    """Raise FewstepError unless every module of the adapter is in the network, with its shape."""
    missing = [name for name in adapter.modules if name not in shapes]
    wrong = [name for name, u in adapter.modules.items() if name in shapes and u.shape != shapes[name]]
    fitting = len(adapter.modules) - len(missing) - len(wrong)
    if fitting == len(adapter.modules):
        return
    first = missing[0] if missing else wrong[0]
    detail = (
        f"{first} is not in it" if missing else f"{first} is {_size(adapter, first)} and not {_said(shapes[first])}"
    )
    raise FewstepError(
        f"LoRA {lora} does not fit {model}: {fitting} of {len(adapter.modules)} modules match; {detail}",
        "use a LoRA made for this model's family, or the model the LoRA was made for",
    )


def _size(adapter: Adapter, name: str) -> str:
    return _said(adapter.modules[name].shape)


def _said(shape: ModuleShape) -> str:
    return f"{shape.in_} -> {shape.out}" + (f", {shape.kernel} x {shape.kernel}" if shape.kernel else "")
