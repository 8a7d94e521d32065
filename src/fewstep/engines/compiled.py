"""The engine that runs torch's networks with their repeated blocks compiled by torch.compile. It is made for GPUs.

Sizes are static: a picture or batch of another size is compiled again. LoRAs are not: weights change in place.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewstep.configs import Where
from fewstep.diffusion.guidance import Conditioning, Network
from fewstep.engines.engine import Capabilities, NetworkOptions
from fewstep.engines.torch import TorchEngine
from fewstep.errors import FewstepError, UsageError, option
from fewstep.events import note
from fewstep.io import cache_dir
from fewstep.models.load import pick_device
from fewstep.models.model import Model

BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")  # classes that a network has many of
SIZES = 256  # kinds of one block: every width, at every size of a picture; past these, blocks run uncompiled
KEPT = "TORCHINDUCTOR_CACHE_DIR"  # names the folder in which torch keeps what it compiled


class CompiledEngine(TorchEngine):
    """A model's networks in torch, their repeated blocks compiled. On a GPU they run as CUDA graphs."""

    supports: ClassVar[Capabilities] = Capabilities(fields=frozenset({"loras", "controlnet", "image"}))

    def __init__(
        self, model: Model, controlnet: Any = None, live: bool = False, device: torch.device | None = None
    ) -> None:
        super().__init__(model, controlnet, live, device)
        self._graphs = self.device.type == "cuda"
        for network in (model.unet, model.vae and model.vae.decoder):
            for block in blocks_of(network):
                block.compile(fullgraph=True, dynamic=False, mode="reduce-overhead" if self._graphs else "default")

    @classmethod
    def open(cls, where: Where) -> "TorchEngine":
        """The engine with the model that `where` names. Raises FewstepError when there is no compiler."""
        check_compiler(pick_device(where.device))
        folder = os.environ.setdefault(KEPT, str(cache_dir() / "engines" / "compiled"))
        note(f"the first picture of a size waits while its network is compiled; what is compiled is kept in {folder}")
        return super().open(where)

    @contextmanager
    def network(self, options: NetworkOptions) -> Iterator[Network]:
        with super().network(options) as network, many_sizes():
            yield network if not self._graphs else Stepped(network)

    def decode(self, latents: Tensor) -> Tensor:
        with many_sizes():
            return super().decode(latents)


class Stepped(nn.Module):
    """A network that runs as CUDA graphs, whose outputs the next call would write over."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's output, in memory of its own."""
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return self.network(x, t, conditioning).clone()


def blocks_of(network: Any) -> list[nn.Module]:
    """The blocks of a network that are compiled; none for None."""
    modules = () if network is None else network.modules()
    return [module for module in modules if type(module).__name__ in BLOCKS]


@contextmanager
def many_sizes() -> Iterator[None]:
    """Inside the block, torch compiles a block for as many sizes as a network has; by default it soon gives up."""
    import torch._dynamo  # torch imports it when something is compiled

    with torch._dynamo.config.patch(recompile_limit=SIZES):
        yield


def check_compiler(device: torch.device) -> None:
    """Raise FewstepError when torch lacks what it compiles with for the device."""
    if device.type == "mps":
        raise UsageError(f"the engine compiled does not run on {option('device')} mps", "use the engine torch")
    if device.type == "cuda":
        if find_spec("triton") is None:
            raise FewstepError("the engine compiled needs the package triton on a GPU", "pip install triton")
        return
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:  # its error has no public name
        raise FewstepError(
            "the engine compiled needs a C++ compiler on a CPU, and torch finds none",
            "install g++, or use the engine torch",
        ) from error


ENGINE = CompiledEngine
