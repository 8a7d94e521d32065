"""Plugs LoRAs into a network and takes them out again. No other file changes a model's weights.

`Folding` adds the sum of the LoRAs to the weights, always starting from W0, so that weights do not drift when the sum
changes often. `attach` does not change the weights and adds the sum to each layer's output. Training adds LoRAs of its
own to the layers' outputs, inside `as_found`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.events import doing
from fewstep.lora.layers import LoraLayers
from fewstep.lora.low_rank import Adapter, LowRank, Weighting, combine, weight_of
from fewstep.lora.rounding import Rounding, lost_share, rounding, some_rows

WeightedAdapter = tuple[Weighting, Adapter]
Share = tuple[Adapter, float]  # one adapter's part in the sum of one module
StoredWeights = Callable[[str], Tensor | None]  # module name -> W0, in its stored type; None = not in a file

ATTACHED = "sum"  # name of the one adapter of `attach`
BLOCK = 2**20  # values of a weight that are computed at once on a CPU, few enough for its cache


class Folding:
    """LoRAs added to the weights of layers: W0 + sum_i w_i B_i A_i, computed in float32 and rounded once.

    W0 is read from the model's file again. When there is no file, W0 is kept for the layers that change. A module whose
    part of the sum is unchanged is not written. An error leaves the weights as they were.
    """

    def __init__(self, layers: Mapping[str, nn.Module], base: StoredWeights | None = None) -> None:
        """layers: by the names that adapters use. base: reads W0 from a file; None = keep copies of W0 on the CPU."""
        self.layers, self._base = layers, base
        self._shares: dict[str, tuple[Share, ...]] = {}  # the adapters in each changed module
        self._roundings: dict[str, Rounding] = {}  # of each changed module
        self._kept: dict[str, Tensor] = {}
        self._checked: set[str] = set()  # modules whose W0 was compared with its file, before anything was written

    @doing("plugging the LoRAs in")
    def plug(self, terms: Sequence[WeightedAdapter]) -> None:
        """Set the weights to W0 + the sum of these terms, whatever was plugged in before. No terms restore W0."""
        shares = shares_of(terms)
        before, changed = dict(self._shares), []
        for name in shares:
            check_weight(name, self.layers[name])
        try:
            for name in dict.fromkeys([*self._shares, *shares]):
                if self._shares.get(name, ()) != shares.get(name, ()):
                    changed.append(name)
                    self._write(name, shares.get(name, ()))
        except BaseException:
            for name in changed:
                self._write(name, before.get(name, ()))
            raise
        self._shares = shares

    def _write(self, name: str, shares: Sequence[Share]) -> None:
        weight = self.layers[name].weight
        assert isinstance(weight, Tensor)
        updates = [(w, adapter.modules[name]) for adapter, w in shares]
        self._roundings[name] = write_sum(weight, self.original(name), updates)

    @property
    def lost(self) -> dict[torch.dtype, float]:
        """Type of weights -> the share of the plugged LoRAs that rounding has lost, see `lost_share`."""
        return lost_share(self._roundings[name] for name in self._shares)

    def original(self, name: str) -> Tensor:
        """W0 of a module, from its file or from a kept copy. Do not write to it."""
        if name in self._kept:
            return self._kept[name]
        weight = self.layers[name].weight
        assert isinstance(weight, Tensor)
        stored = None if self._base is None else self._base(name)
        if stored is not None:
            stored = stored.reshape(weight.shape)
        if stored is None or (name not in self._checked and not same_row(stored, weight)):
            stored = self._kept[name] = weight.detach().to("cpu", copy=True)
        self._checked.add(name)
        return stored


def shares_of(terms: Sequence[WeightedAdapter]) -> dict[str, tuple[Share, ...]]:
    """Module -> its adapters and their weights, in the order of the terms. Adapters with weight 0 are left out."""
    shares: dict[str, tuple[Share, ...]] = {}
    for weight, adapter in terms:
        for name in adapter.modules:
            if share := weight_of(weight, name):
                shares[name] = (*shares.get(name, ()), (adapter, share))
    return shares


def same_row(stored: Tensor, weight: Tensor) -> bool:
    """Whether the first rows of the stored W0 and of the weight are equal. The file may be another variant."""
    return torch.equal(stored[:1].to(weight.dtype), weight[:1].detach().cpu())


def check_weight(name: str, layer: nn.Module) -> None:
    """Raise FewstepError for a weight to which nothing can be added."""
    weight = layer.weight
    if not isinstance(weight, Tensor) or weight.is_meta or not weight.is_floating_point():
        raise FewstepError(f"the weight of {name} is quantised or offloaded", "use folded=False")


@torch.no_grad()
def write_sum(weight: Tensor, W0: Tensor, terms: Sequence[tuple[float, LowRank]]) -> Rounding:
    """Set weight to W0 + sum_i w_i B_i A_i, computed in float32 and rounded once to its type. Returns the rounding.

    A CPU computes some rows at a time, so that the sum stays in its cache.
    """
    device, looked_at = weight.device, some_rows(weight)
    factors = [(w, LowRank(*(x.flatten(1).to(device, torch.float32) for x in update))) for w, update in terms]
    rows = len(weight) if device.type != "cpu" else max(1, BLOCK // weight[0].numel())
    sums = torch.empty_like(W0[:rows].flatten(1), dtype=torch.float32, device=device)
    for first in range(0, len(weight) if terms else 0, rows):
        part = slice(first, first + rows)
        total = sums[: len(weight[part])]
        total.copy_(W0[part].flatten(1))
        for w, (A, B) in factors:
            total.addmm_(B[part], A, alpha=w)
        weight[part] = total.view(weight[part].shape)
    if not terms:
        weight.copy_(W0)
    before = W0[looked_at].to(device, weight.dtype)
    added = torch.zeros_like(before, dtype=torch.float32)
    for w, (A, B) in factors:
        added += w * (B[looked_at] @ A).view(added.shape)
    return rounding(before, weight[looked_at], added, len(weight))


def attach(
    layers: Mapping[str, nn.Module], terms: Sequence[WeightedAdapter], narrow: torch.dtype = torch.float32
) -> LoraLayers:
    """Add the sum of the LoRAs to the layers' outputs, until `remove()`. Factors have the type of their layer's weight.

    narrow: the factors' type for layers with quantised or 8-bit weights, which are types for storage only.
    """
    total = combine(terms)
    types = {name: computing_type(layers[name], narrow) for name in total}
    live = LoraLayers(layers)
    live.add(ATTACHED, {name: LowRank(*(x.to(types[name]) for x in total[name])) for name in total})
    live.switch = ((ATTACHED, 1.0),)
    return live


def computing_type(layer: nn.Module, narrow: torch.dtype) -> torch.dtype:
    """The type of a layer's weight, or `narrow` when that type is for storage only."""
    dtype = layer.weight.dtype if isinstance(layer.weight, Tensor) else narrow
    return dtype if dtype.is_floating_point and dtype.itemsize > 1 else narrow


@contextmanager
def as_found(network: nn.Module) -> Iterator[None]:
    """After the block, the network's device, its modes and its parameters' requires_grad are as they were before."""
    modes = [(module, module.training, getattr(module, "gradient_checkpointing", None)) for module in network.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    device = gradients[0][0].device
    try:
        yield
    finally:
        if gradients[0][0].device != device:
            network.to(device)
        for parameter, requires in gradients:
            parameter.requires_grad_(requires)
        for module, training, checkpointing in modes:
            module.training = training
            if checkpointing is not None:
                module.gradient_checkpointing = checkpointing
