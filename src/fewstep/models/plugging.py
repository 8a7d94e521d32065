"""Plugging LoRAs into a network, and out again: the only place where weights of a model change.

`Folding` adds the sum of LoRAs to the weights themselves, always from W0, so that nothing drifts however often it
changes. `attach` leaves the weights alone and adds the sum to each layer's output. Training, which puts LoRAs of
its own beside layers, does so within `as_found`.
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
StoredWeights = Callable[[str], Tensor | None]  # module name -> W0, in the type it is stored in; None: not in a file

ATTACHED = "sum"  # what the one adapter of `attach` is called
BLOCK = 2**20  # values of a weight that are computed at once on a CPU: the sum stays in its cache on the way


class Folding:
    """LoRAs added into the weights of layers: W0 + sum_i w_i B_i A_i, computed in float32 and rounded once.

    W0 is read from the model's file again, or, where there is none, kept for the layers that are touched. A module
    whose share of the sum stays what it is, is not touched. An error leaves the weights as they were.
    """

    def __init__(self, layers: Mapping[str, nn.Module], base: StoredWeights | None = None) -> None:
        """layers: by the names that adapters have. base: reads W0; None keeps copies on the CPU."""
        self.layers, self._base = layers, base
        self._shares: dict[str, tuple[Share, ...]] = {}  # what is in each touched module
        self._roundings: dict[str, Rounding] = {}  # of each of them
        self._kept: dict[str, Tensor] = {}
        self._checked: set[str] = set()  # modules whose W0 was compared with its file, before anything was written

    @doing("plugging the LoRAs in")
    def plug(self, terms: Sequence[WeightedAdapter]) -> None:
        """Make the weights W0 + the sum of these terms, whatever was plugged before; no term restores W0."""
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
        """The share of what is plugged in that rounding has taken, by the weights' type: see `lost_share`."""
        return lost_share(self._roundings[name] for name in self._shares)

    def original(self, name: str) -> Tensor:
        """W0 of a module, from its file or as it was kept; not to be written to."""
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
    """What every module of the terms gets of each adapter, in their order; weight 0 is nothing."""
    shares: dict[str, tuple[Share, ...]] = {}
    for weight, adapter in terms:
        for name in adapter.modules:
            if share := weight_of(weight, name):
                shares[name] = (*shares.get(name, ()), (adapter, share))
    return shares


def same_row(stored: Tensor, weight: Tensor) -> bool:
    """Whether the first row of W0 as it is stored is that of the weight: the file may be another variant."""
    return torch.equal(stored[:1].to(weight.dtype), weight[:1].detach().cpu())


def check_weight(name: str, layer: nn.Module) -> None:
    """Raise FewstepError for a weight that nothing can be added into."""
    weight = layer.weight
    if not isinstance(weight, Tensor) or weight.is_meta or not weight.is_floating_point():
        raise FewstepError(f"the weight of {name} is quantised or offloaded", "use folded=False")


@torch.no_grad()
def write_sum(weight: Tensor, W0: Tensor, terms: Sequence[tuple[float, LowRank]]) -> Rounding:
    """weight <- W0 + sum_i w_i B_i A_i, in float32, rounded once to the weight's type; what that lets in.

    On a CPU some rows at a time, so that the sum stays in its cache on the way.
    """
    device, looked_at = weight.device, some_rows(weight)
    factors = [(w, LowRank(*(x.flatten(1).to(device, torch.float32) for x in update))) for w, update in terms]
    rows = len(weight) if device.type != "cpu" else max(1, BLOCK // weight[0].numel())
    for first in range(0, len(weight) if terms else 0, rows):
        part = slice(first, first + rows)
        total = W0[part].to(device, torch.float32, copy=True).flatten(1)
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
    """The sum of the LoRAs added to the layers' outputs, each in the type of its layer's weight, until `remove()`.

    narrow: the type of those beside quantised weights and weights of 8 bits, which are for storage alone.
    """
    total = combine(terms)
    types = {name: computing_type(layers[name], narrow) for name in total}
    live = LoraLayers(layers)
    live.add(ATTACHED, {name: LowRank(*(x.to(types[name]) for x in total[name])) for name in total})
    live.switch = ((ATTACHED, 1.0),)
    return live


def computing_type(layer: nn.Module, narrow: torch.dtype) -> torch.dtype:
    """The type of a layer's weight, or `narrow` where that is none to compute in."""
    dtype = layer.weight.dtype if isinstance(layer.weight, Tensor) else narrow
    return dtype if dtype.is_floating_point and dtype.itemsize > 1 else narrow


@contextmanager
def as_found(network: nn.Module) -> Iterator[None]:
    """A block after which the network's device, its modes and what of it requires gradients are as they were."""
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
