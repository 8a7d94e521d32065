"""LoRAs on a network, unfolded: forward hooks add them to the layers' outputs, and each call can switch them."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.configs import Modules
from fewstep.families import ModuleShape, is_target
from fewstep.lora.low_rank import LowRank

Masking = Callable[[str, Tensor], Tensor]  # of a module's name and its input; returns what the updates see of the input
Switch = tuple[tuple[str, float], ...]  # (adapter name, weight) of the adapters that a forward pass adds


def shape_of(module: nn.Module) -> ModuleShape | None:
    """The shape of a weight: of a Linear, or a Conv2d with a square kernel and no groups; None for other modules."""
    if isinstance(module, nn.Linear):
        return ModuleShape(module.out_features, module.in_features, 0)
    if isinstance(module, nn.Conv2d) and module.groups == 1 and module.kernel_size[0] == module.kernel_size[1]:
        return ModuleShape(module.out_channels, module.in_channels, module.kernel_size[0])
    return None


def layers_of(network: nn.Module) -> dict[str, nn.Module]:
    """Dotted name -> module, for every module of `network` that a LoRA can adapt."""
    return {name: module for name, module in network.named_modules() if shape_of(module) is not None}


def module_shapes(network: nn.Module) -> dict[str, ModuleShape]:
    """Dotted name -> shape, for every module of `network` that a LoRA can adapt."""
    found = ((name, shape_of(module)) for name, module in network.named_modules())
    return {name: shape for name, shape in found if shape is not None}


def target_shapes(network: nn.Module, modules: Modules = "all") -> dict[str, ModuleShape]:
    """Dotted name -> shape, for those modules of the network. modules: as in is_target."""
    return {name: shape for name, shape in module_shapes(network).items() if is_target(name, modules)}


def initial(shapes: Mapping[str, ModuleShape], rank: int, seed: int) -> dict[str, LowRank]:
    """Untrained updates. A is uniform, as in a new Linear or Conv2d of torch; B is zero, so that Delta W is zero."""
    generator = torch.Generator("cpu").manual_seed(seed)
    updates = {}
    for name, shape in shapes.items():
        kernel = (shape.kernel, shape.kernel) if shape.kernel else ()
        bound = 1 / math.sqrt(shape.in_ * max(shape.kernel, 1) ** 2)
        A = (torch.rand(rank, shape.in_, *kernel, generator=generator) * 2 - 1) * bound
        updates[name] = LowRank(A, torch.zeros(shape.out, rank, *(1,) * len(kernel)))
    return updates


class LoraLayers(nn.Module):
    """Named LoRAs next to a network's layers: W0 x + sum_i weight_i B_i A_i x. W0 does not change.

    The network's modules and parameter names stay as they are. Forward hooks add the updates, which are parameters of
    this module. `using` switches adapters on; without it the network is the bare one.
    """

    def __init__(self, network: nn.Module | Mapping[str, nn.Module]) -> None:
        """network: the network, or its layers by the names that updates have."""
        super().__init__()
        self.switch: Switch = ()
        self.masking: Masking | None = None  # for dropout, outside `using` only
        self._layers = layers_of(network) if isinstance(network, nn.Module) else dict(network)
        self._factors: dict[str, dict[str, tuple[nn.Parameter, nn.Parameter]]] = {}  # module -> adapter -> A, B
        self._hooks: list[Any] = []

    def add(self, adapter: str, updates: Mapping[str, LowRank], trainable: bool = False) -> None:
        """Add an adapter, switched off. Every update must fit its layer."""
        for name, update in updates.items():
            if name not in self._factors:
                self._factors[name] = {}
                self._hooks.append(self._layers[name].register_forward_hook(self._hook(name)))
            A, B = (nn.Parameter(x, requires_grad=trainable) for x in update)
            self._factors[name][adapter] = (A, B)
            self.register_parameter(f"{adapter}/{name}/A".replace(".", "|"), A)
            self.register_parameter(f"{adapter}/{name}/B".replace(".", "|"), B)

    def _hook(self, name: str) -> Any:
        factors = self._factors[name]

        def add_updates(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            for adapter, weight in self.switch:
                if adapter in factors and weight:
                    for factor in factors[adapter]:
                        if factor.device != inputs[0].device:  # the network was moved, or its layers are offloaded
                            factor.data = factor.data.to(inputs[0].device)
                    x = inputs[0] if self.masking is None else self.masking(name, inputs[0])
                    output = torch.add(output, update_output(layer, x, *factors[adapter]), alpha=weight)
            return output

        return add_updates

    def parameters_of(self, adapter: str) -> dict[str, nn.Parameter]:
        """The adapter's factors by name: `module/A` and `module/B`."""
        return {
            f"{name}/{letter}": factor
            for name, adapters in self._factors.items()
            if adapter in adapters
            for letter, factor in zip("AB", adapters[adapter], strict=True)
        }

    def updates_of(self, adapter: str) -> dict[str, LowRank]:
        """The adapter's updates. They share the parameters' storage."""
        return {
            name: LowRank(*(x.detach() for x in adapters[adapter]))
            for name, adapters in self._factors.items()
            if adapter in adapters
        }

    @contextmanager
    def using(self, *switch: tuple[str, float]) -> Iterator[None]:
        """Inside the block, add exactly these adapters, at these weights, and without dropout.

        A backward pass with gradient checkpointing runs the forward pass again, so it must be inside the block too.
        """
        before, masking, self.switch, self.masking = self.switch, self.masking, switch, None
        try:
            yield
        finally:
            self.switch, self.masking = before, masking

    def remove(self) -> None:
        """Remove the hooks from the network."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


def update_output(layer: nn.Module, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """B A x, computed as the layer does: for a Conv2d, a k x k convolution down to R channels, then 1 x 1 up."""
    if not torch.is_autocast_enabled(x.device.type):
        A, B = A.to(x.dtype), B.to(x.dtype)
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(F.conv2d(x, A, None, layer.stride, layer.padding, layer.dilation), B)
    return F.linear(F.linear(x, A), B)
